"""`python -m training.score MODEL --data DIR`: exact answers on what was kept out, and what a blind guess scores.

An answer is right if it equals the expected one after lower-casing and stripping a final period. The blind guess says
what was the commonest answer to the same question in training, or, to a question not met there, to those of its kind.
"""

import random
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mm_rwkv7.command import Parser, run_command
from mm_rwkv7.pipeline import Pipeline
from training.config import load_recipe
from training.singles.named import SOUND_SOURCES, AnySample, AnySource, open_sources, open_turn
from training.singles.sources import SOURCES, Sample

TRAINED = 4000  # samples of each source that the blind guess has seen


@dataclass(frozen=True)
class Score:
    """Questions right out of those asked, by the model and by the blind guess."""

    asked: int = 0
    right: int = 0
    blind: int = 0

    def __str__(self) -> str:
        return f"{100 * self.right / self.asked:.1f} | {100 * self.blind / self.asked:.1f} | {self.asked}"


def score(pipeline: Pipeline, sources: Mapping[str, AnySource], limit: int) -> dict[str, Score]:
    """Ask every question about up to `limit` pictures or sounds of each source; returns a score a source and, where the
    source tells kinds of questions apart, a kind."""
    totals: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for name, source in sources.items():
        guess = BlindGuess(source)
        samples: Sequence[AnySample] = source.held_out(limit)
        for sample in tqdm(samples, desc=name, unit="sample"):
            state = pipeline.prefill(open_turn(sample))
            for i, (question, answer) in enumerate(sample.qa):
                kind = sample.kinds[i] if sample.kinds else ""
                said, blind = pipeline.ask(question, state=state).text, guess(question, kind)
                accepted = (answer, *sample.aliases) if isinstance(sample, Sample) else (answer,)
                outcome = any(same(said, right) for right in accepted), any(same(blind, right) for right in accepted)
                totals[name].append(outcome)
                if kind:
                    totals[f"{name}: {kind}"].append(outcome)
    return {
        name: Score(len(rows), sum(right for right, _ in rows), sum(blind for _, blind in rows))
        for name, rows in totals.items()
    }


def same(said: str, expected: str) -> bool:
    """Whether two answers are equal but for case and a final period."""
    return said.lower().removesuffix(".") == expected.lower().removesuffix(".")


class BlindGuess:
    """The commonest answer to a question among the samples that were trained on."""

    def __init__(self, source: AnySource) -> None:
        rng = random.Random("blind")
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in (source.train(rng) for _ in range(TRAINED)):
            for i, (question, answer) in enumerate(sample.qa):
                self.answers[question][answer] += 1
                self.kinds[sample.kinds[i] if sample.kinds else ""][answer] += 1

    def __call__(self, question: str, kind: str) -> str:
        known = self.answers.get(question) or self.kinds[kind]
        return known.most_common(1)[0][0]


def table(scores: Mapping[str, Score]) -> str:
    """The scores as a Markdown table."""
    rows = [f"| {name} | {value} |" for name, value in sorted(scores.items())]
    return "\n".join(["| questions about | exact % | blind % | asked |", "|---|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m training.score", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint folder, or nano")
    parser.add_argument("--data", default="../shared/data", type=Path, help="folder of the parquet tables")
    parser.add_argument("--sources", help="which of them, with commas (default: those that nano learns from)")
    parser.add_argument("--limit", default=1000, type=int, help="pictures or sounds of each source at most")
    return run_command(parser, arguments, _score)


def _score(options: Namespace) -> None:
    if options.limit < 1:
        raise ValueError(f"--limit is {options.limit}, expected at least 1")
    pipeline = Pipeline.from_pretrained(options.model)
    names = options.sources.split(",") if options.sources else [n for s in load_recipe("nano").stages for n in s.data]
    tower = pipeline.model.tower
    for part, known, sense in ((tower, SOURCES, "see"), (pipeline.model.sound, SOUND_SOURCES, "hear")):
        if part is None and (wrong := sorted(set(known).intersection(names))):
            raise ValueError(f"model {options.model!r} cannot {sense} {wrong}; --sources names what it is asked about")
    size = 0 if tower is None else tower.preprocess.size
    print(table(score(pipeline, open_sources(names, options.data, size), options.limit)))


if __name__ == "__main__":
    sys.exit(main())
