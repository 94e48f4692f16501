"""Associative recall: many pairs of a key and a value, then keys whose values are wanted (MQAR, arXiv 2312.04927).

Pairs lie evenly in generated sentences, which fill the text up to its length. The state after the text is read once,
and each key is asked from a copy of it.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.choosing import best
from eval.haystack import fill
from eval.task import Mode, Sample, Scores, Task
from eval.tasks.needle import means

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline

SEED = 1
PAIRS = (4, 8, 16, 32, 64)
LENGTHS = (256, 1024, 4096)  # tokens of the World vocabulary, about
REPEATS, QUERIES = 4, 4  # texts of each cell, keys asked of each
TOKENS = 12  # of a pair, at most


class Recall(Task):
    """Generated from a seed: every machine asks the same. The choices are the values of all pairs of the text."""

    name = "recall"
    variant = f"the likeliest of the text's values after a key, seed {SEED}; blind: 100 / pairs"
    mode = Mode.LIKELIHOOD

    def samples(self, data: Path) -> Sequence[Sample]:
        return [
            sample
            for length in LENGTHS
            for pairs in PAIRS
            if pairs * TOKENS <= length
            for number in range(REPEATS)
            for sample in text(length, pairs, number)
        ]

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        import torch

        from mm_rwkv7.generate import prefill

        encode = pipeline.tokenizer.encode
        for context, group in groupby(samples, key=lambda sample: sample.question.rpartition("\n")[0]):
            ids = [pipeline.tokenizer.end_id, *encode(f"{context}\n")]
            _, state = prefill(pipeline.model, torch.tensor([ids], device=pipeline.device))
            for sample in group:
                key = encode(sample.question.rpartition("\n")[2])
                yield [one.total for one in pipeline.token_likelihood(key, [*map(encode, sample.choices)], state)]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        samples = {sample.id: sample for sample in self.samples(data)}
        each = {}
        for name, prediction in predictions.items():
            choices = samples[name].choices
            if len(prediction) != len(choices):
                raise ValueError(f"the prediction of {name!r} has {len(prediction)} numbers, expected {len(choices)}")
            each[name] = 100.0 * (choices[best(prediction)].strip() == samples[name].expected)
        length = {name: f"{int(name.split('-')[0]):,}" for name in each}
        pairs = {name: name.split("-")[1] for name in each}
        return Scores(
            main="accuracy",
            metrics={
                "accuracy": sum(each.values()) / len(each),
                "blind": sum(100 / int(count) for count in pairs.values()) / len(pairs),
            },
            per_sample=each,
            breakdown={
                "tokens": means(each, length),
                "pairs": means(each, pairs),
                "tokens and pairs": means(each, {name: f"{length[name]} with {pairs[name]} pairs" for name in each}),
            },
        )


def text(length: int, pairs: int, number: int) -> Iterator[Sample]:
    """The questions of one text."""
    rng = random.Random(f"recall {SEED} {length} {pairs} {number}")
    syllables = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "bdgklmnprst"]
    keys = rng.sample(syllables, pairs)
    values = [str(value) for value in rng.sample(range(10, 100), pairs)]
    lines = [f"{key} = {value}" for key, value in zip(keys, values, strict=True)]
    filler = fill(rng, length - pairs * TOKENS, "\n")
    cuts = [round(len(filler) * place / pairs) for place in range(pairs + 1)]
    blocks = [[line, *filler[start:end]] for line, start, end in zip(lines, cuts, cuts[1:], strict=False)]
    context = "\n".join(line for block in blocks for line in block)
    for place in rng.sample(range(pairs), min(QUERIES, pairs)):
        yield Sample(
            id=f"{length}-{pairs}-{number}-{keys[place]}",
            question=f"{context}\n{keys[place]} =",
            choices=tuple(f" {value}" for value in values),
            cluster=f"{length}-{pairs}-{number}",
            expected=values[place],
        )
