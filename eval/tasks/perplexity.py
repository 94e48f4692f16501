"""Perplexity of texts: each file DATA/perplexity/*.txt is one text.

Numbers per token depend on the tokenizer; those per byte compare models of any.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.files import read_text
from eval.finite import finite, perplexity
from eval.task import Mode, Sample, Scores, Task

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline

ORIGIN = "anywhere: any text in UTF-8, such as the test split of WikiText-2 (raw)"
FIRST = 1024  # tokens of the first stretch; each next one ends twice as far into the text
WINDOW, STRIDE = 1024, 512


class Perplexity(Task):
    """A prediction is a list of pairs, how many tokens and the logarithm of their probability, one for each stretch of
    the text: the first 1,024 tokens, those up to 2,048, up to 4,096 and so on."""

    name = "perplexity"
    variant = "state carried: every token after the end-of-text token and all of the text before it"
    folder = "perplexity"
    mode = Mode.PERPLEXITY

    def samples(self, data: Path) -> Sequence[Sample]:
        paths = sorted(data.glob("*.txt"))
        if not paths:
            raise ValueError(f"{data} holds no *.txt; they come from {ORIGIN}")
        found = [Sample(id=path.name, question=read_text(path, ORIGIN)) for path in paths]
        if empty := [sample.id for sample in found if not sample.question.strip()]:
            raise ValueError(f"{data / empty[0]} is empty, expected a text")
        return found

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        for sample in samples:
            log_probs = self.log_probs(pipeline, pipeline.tokenizer.encode(sample.question))
            bounds = [0, FIRST]
            while bounds[-1] < len(log_probs):
                bounds.append(2 * bounds[-1])
            stretches = [log_probs[start:end] for start, end in pairwise(bounds)]
            yield [number for one in stretches for number in (float(len(one)), math.fsum(one))]

    def log_probs(self, pipeline: "Pipeline", ids: Sequence[int]) -> Sequence[float]:
        """Of every token of a text."""
        return pipeline.token_likelihood([pipeline.tokenizer.end_id], [ids])[0].log_probs

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        texts = {name: read_text(data / name, ORIGIN) for name in predictions}
        bytes_of = {name: len(text.encode()) for name, text in texts.items()}
        totals, counts = {}, {}
        for name, prediction in predictions.items():
            if not prediction or len(prediction) % 2:
                raise ValueError(f"the prediction of {name!r} has {len(prediction)} numbers, expected pairs")
            counts[name], totals[name] = sum(prediction[::2]), sum(prediction[1::2])

        def bits_per_byte(names: Sequence[str]) -> float:
            return -sum(totals[name] for name in names) / math.log(2) / sum(bytes_of[name] for name in names)

        total, tokens = sum(totals.values()), sum(counts.values())
        bits = bits_per_byte(list(predictions))
        size = sum(bytes_of.values())
        # As lm-evaluation-harness counts words.
        words = sum(len(re.split(r"\s+", text)) for text in texts.values())
        metrics, notes = finite(
            {
                "bits per byte": bits,
                "perplexity per byte": perplexity(total, size),
                "perplexity per token": perplexity(total, tokens),
                "perplexity per word": perplexity(total, words),
                "tokens": tokens,
                "bytes": size,
            }
        )
        return Scores(
            main="bits per byte",
            metrics=metrics,
            per_sample={name: bits_per_byte([name]) for name in predictions},
            breakdown={"bits per token by place in the text": by_stretch(list(predictions.values()))},
            corpus={"bits per byte": bits_per_byte},
            notes=notes,
        )


class Strided(Perplexity):
    """As for models that read a window: the rule of Hugging Face's guide to the perplexity of fixed-length models."""

    name = "perplexity_strided"
    variant = (
        f"strided: windows of {WINDOW:,} tokens that begin every {STRIDE}, each read from an empty state; of each only "
        "the tokens that the window before it did not have count"
    )

    def log_probs(self, pipeline: "Pipeline", ids: Sequence[int]) -> Sequence[float]:
        found: list[float] = []
        for start in range(0, len(ids), STRIDE):
            end = min(start + WINDOW, len(ids))
            prompt = ids[start : len(found)] or [pipeline.tokenizer.end_id]
            found += pipeline.token_likelihood(prompt, [ids[len(found) : end]])[0].log_probs
            if end == len(ids):
                break
        return found


def by_stretch(predictions: Sequence[Sequence[float]]) -> dict[str, float]:
    """The loss in bits of each stretch's tokens over all texts that reach it."""
    found = {}
    for place in range(max(len(prediction) for prediction in predictions) // 2):
        reached = [one[2 * place : 2 * place + 2] for one in predictions if len(one) > 2 * place + 1]
        tokens = sum(count for count, _ in reached)
        if tokens:
            found[f"up to {FIRST * 2**place:,}"] = -sum(total for _, total in reached) / tokens / math.log(2)
    return found
