"""Benchmarks that are generated from odd seeds and need no files: questions with exact answers, by kind."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.task import Sample, Scores, Task

MADE = 300  # pictures or sounds


class Generated(Task):
    """Evaluation has the odd seeds, training the even ones."""

    max_new_tokens = 32

    def ask(self, seed: int) -> Sequence[tuple[str, str, str]]:
        """The questions about what a seed makes, each with its answer and its kind."""
        raise NotImplementedError

    def show(self, seed: int) -> dict[str, Any]:
        """What a `Sample` has of it: pictures or sounds, made when they are wanted."""
        raise NotImplementedError

    def samples(self, data: Path) -> Sequence[Sample]:
        return [sample for sample, _ in self._questions()]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        """The share of answers equal to the expected one but for case, blanks around it and a final period: of all and
        of each kind."""
        right: dict[str, float] = {}
        kinds: dict[str, list[float]] = defaultdict(list)
        for sample, kind in self._questions():
            if sample.id in predictions:
                right[sample.id] = 100.0 * (_plain(predictions[sample.id]) == _plain(sample.expected))
                kinds[kind].append(right[sample.id])
        table = {kind: sum(kinds[kind]) / len(kinds[kind]) for kind in sorted(kinds)}
        return Scores("exact", {"exact": sum(right.values()) / len(right)}, right, {"kind of question": table})

    def _questions(self) -> Iterator[tuple[Sample, str]]:
        """Every sample with the kind of its question."""
        for seed in range(1, 2 * MADE, 2):
            shown = self.show(seed)
            for number, (question, answer, kind) in enumerate(self.ask(seed)):
                yield Sample(f"{seed}-{number}", question, cluster=str(seed), expected=answer, **shown), kind


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".")
