"""POPE: is there such a thing in the picture? Yes-no questions on 500 pictures of COCO val2014, in three files.

The absent things are drawn at random, from what is popular in the data set, or from what often comes along with what is
there (adversarial). The first published `random` file has 2,910 rows, today's 3,000; LLaVA's figures are on the first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import pope
from eval.metrics.mean import mean
from eval.task import Sample, Scores, Task

ORIGIN = "the POPE repository, https://github.com/AoiDragon/POPE (output/coco)"
CATEGORIES = ("random", "popular", "adversarial")
LABELS = ("yes", "no")


class Pope(Task):
    """The mean of the three F1 scores, which is what papers report."""

    name = "pope"
    variant = "COCO, answers parsed by the official rule, mean F1 of random, popular and adversarial"
    folder = "pope"
    prompt = "short"

    def samples(self, data: Path) -> Sequence[Sample]:
        found = []
        for id, record in self._records(data).items():
            picture = record["image"].text()
            found.append(
                Sample(
                    id,
                    prompts.fill(self.prompt, question=record["text"].text()),
                    images=(data / "val2014" / picture,),
                    cluster=picture,
                    expected=_label(record),
                )
            )
        return sorted(found, key=lambda sample: sample.cluster)  # questions on one picture one after another

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        records = self._records(data)
        outcome = {
            id: (id.partition("/")[0], pope.parse(text), _label(records[id])) for id, text in predictions.items()
        }

        def table(ids: Sequence[str]) -> dict[str, dict[str, float]]:
            counts: dict[str, dict[tuple[str, str], int]] = {}
            for (category, answer, label), count in Counter(outcome[id] for id in ids).items():
                counts.setdefault(category, {})[answer, label] = count
            return {
                category: {name: 100 * value for name, value in pope.scores(counts[category]).items()}
                for category in CATEGORIES
                if category in counts
            }

        def mean_f1(ids: Sequence[str]) -> float:
            return mean(row["f1"] for row in table(ids).values())

        whole = table(list(predictions))
        metrics = {"f1": mean_f1(list(predictions))}
        metrics |= {f"{name}_{category}": value for category, row in whole.items() for name, value in row.items()}
        sizes = Counter(category for category, _, _ in outcome.values())
        rows = ", ".join(f"{category} {sizes[category]:,}" for category in CATEGORIES)
        return Scores(
            main="f1",
            metrics=metrics,
            per_sample={id: 100.0 * (answer == label) for id, (_, answer, label) in outcome.items()},
            breakdown={"category": {category: row["f1"] for category, row in whole.items()}},
            corpus={"f1": mean_f1},
            notes=(f"Rows scored: {rows}.",),
        )

    def _records(self, data: Path) -> dict[str, files.Record]:
        found: dict[str, files.Record] = {}
        for name in CATEGORIES:
            records = files.read_jsonl(data / f"coco_pope_{name}.json", ORIGIN)
            rows = files.unique(records, lambda record: record["question_id"].name())
            found |= {f"{name}/{id}": record for id, record in rows.items()}
        return found


def _label(record: files.Record) -> str:
    label = record["label"].text()
    if label not in LABELS:
        raise record["label"].error(f"{label!r}, expected one of {', '.join(LABELS)}")
    return label
