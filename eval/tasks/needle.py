"""A needle in a haystack: one fact in a long text, asked for at its end, by the text's length and the fact's depth."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.haystack import fill
from eval.task import Sample, Scores, Task

SEED = 1
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)  # tokens of the World vocabulary, about
DEPTHS = (0, 25, 50, 75, 100)  # percent of the text before the fact
REPEATS = 4
CITIES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Cairo", "Dublin", "Perth", "Warsaw", "Nairobi", "Lima")


class Needle(Task):
    """Generated from a seed: every machine asks the same."""

    name = "needle"
    variant = f"a number of five digits in generated sentences, seed {SEED}; right if the answer has the number"
    max_new_tokens = 16

    def samples(self, data: Path) -> Sequence[Sample]:
        return [sample(length, depth, number) for length in LENGTHS for depth in DEPTHS for number in range(REPEATS)]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        expected = {sample.id: sample.expected for sample in self.samples(data)}
        each = {name: 100.0 * (expected[name] in re.findall(r"\d+", said)) for name, said in predictions.items()}
        lengths = {name: f"{int(name.split('-')[0]):,}" for name in each}
        depths = {name: f"{name.split('-')[1]} %" for name in each}
        return Scores(
            main="accuracy",
            metrics={"accuracy": sum(each.values()) / len(each)},
            per_sample=each,
            breakdown={
                "tokens": means(each, lengths),
                "depth": means(each, depths),
                "tokens and depth": means(each, {name: f"{lengths[name]} at {depths[name]}" for name in each}),
            },
        )


def sample(length: int, depth: int, number: int) -> Sample:
    """The question of a cell of the table."""
    rng = random.Random(f"needle {SEED} {length} {depth} {number}")
    city, secret = rng.choice(CITIES), str(rng.randrange(10_000, 100_000))
    fact = f"The secret number of {city} is {secret}."
    question = f"What is the secret number of {city}? Answer with the number."
    text = fill(rng, length - 40)
    text.insert(round(len(text) * depth / 100), fact)
    return Sample(id=f"{length}-{depth}-{number}", question=f"{' '.join(text)}\n{question}", expected=secret)


def means(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """The mean of each group's values, groups in order of appearance."""
    members: dict[str, list[float]] = {}
    for name, value in values.items():
        members.setdefault(groups[name], []).append(value)
    return {group: sum(those) / len(those) for group, those in members.items()}
