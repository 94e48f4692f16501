"""ESC-50 and ESC-10: one of fifty, or ten, everyday sounds in each clip; accuracy as the mean over the five folds.

No model is trained on four folds and asked about the fifth here: one and the same model answers all of them. What it
was trained on has to be said beside its score.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.choosing import best, choose
from eval.files import Record, read_csv, unique
from eval.task import Mode, Sample, Scores, Task
from eval.tasks.audioset import all_tags
from eval.tasks.esc_in_audioset import AUDIOSET

if TYPE_CHECKING:
    from mm_rwkv7.listening import Listener
    from mm_rwkv7.pipeline import Pipeline

ORIGIN = "https://github.com/karolpiczak/ESC-50"
TABLE = "meta/esc50.csv"
QUESTION = "What do you hear?"
FOLDS = ("1", "2", "3", "4", "5")

# ESC-10 appeared by itself, with other names for four of its ten classes than ESC-50's table has.
ESC10 = {
    "crying baby": "baby cry",
    "dog": "dog bark",
    "crackling fire": "fire crackling",
    "sneezing": "person sneeze",
}
OTHER = {**ESC10, **{esc10: esc50 for esc50, esc10 in ESC10.items()}}


class Esc(Task):
    """ESC-50's table and clips as in its repository; ESC-10 are the rows that it marks."""

    folder = "esc50"
    prompt = "plain"
    esc10 = False

    def samples(self, data: Path) -> Sequence[Sample]:
        records = self.records(data)
        names = tuple(sorted({self.label(record) for record in records.values()}))
        return [
            Sample(
                id=clip, question=QUESTION, sounds=(data / "audio" / clip,), choices=names, expected=self.label(record)
            )
            for clip, record in records.items()
        ]

    def records(self, data: Path) -> dict[str, Record]:
        """The clips' rows by file name."""
        rows = read_csv(data / TABLE, ORIGIN)
        for row in rows:
            if row["fold"].text() not in FOLDS:
                raise row.error(f"the fold is {row['fold'].text()!r}, expected 1 to 5")
            if row["esc10"].text() not in ("True", "False"):
                raise row.error(f"esc10 is {row['esc10'].text()!r}, expected True or False")
        kept = [row for row in rows if not self.esc10 or row["esc10"].text() == "True"]
        return unique(kept, lambda row: row["filename"].text())

    def label(self, record: Record) -> str:
        """What a clip's class is called in this task."""
        name = words(record["category"].text())
        return ESC10.get(name, name) if self.esc10 else name

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        records = self.records(data)
        names = sorted({self.label(record) for record in records.values()})
        right = {clip: self.label(records[clip]) == self.said(predictions[clip], names) for clip in predictions}
        folds, classes = defaultdict(list), defaultdict(list)
        for clip, correct in right.items():
            folds[records[clip]["fold"].text()].append(correct)
            classes[self.label(records[clip])].append(correct)
        per_fold = {fold: 100 * sum(rows) / len(rows) for fold, rows in sorted(folds.items())}
        weights = {fold: len(right) / (len(folds) * len(rows)) for fold, rows in folds.items()}
        return Scores(
            main="accuracy",
            metrics={"accuracy": sum(per_fold.values()) / len(per_fold), "folds": len(per_fold)},
            # The mean over folds as a mean over clips: each weighs as its fold does.
            per_sample={clip: 100 * correct * weights[records[clip]["fold"].text()] for clip, correct in right.items()},
            breakdown={
                "fold": per_fold,
                "class": {name: 100 * sum(rows) / len(rows) for name, rows in sorted(classes.items())},
            },
        )

    def said(self, prediction: Any, names: Sequence[str]) -> str | None:
        """The class that a prediction names, None where it names none."""
        raise NotImplementedError


class Written(Esc):
    """What the model writes when it is asked."""

    variant = "generate: the one label that the answer is or names"

    def said(self, prediction: Any, names: Sequence[str]) -> str | None:
        return parse(str(prediction), names)


class Rated(Esc):
    """The label with the greatest number."""

    def said(self, prediction: Any, names: Sequence[str]) -> str | None:
        if len(prediction) != len(names):
            raise ValueError(f"a prediction has {len(prediction)} numbers, expected {len(names)}")
        return names[best(prediction)]


class Likeliest(Rated):
    """The label that is likeliest as an answer."""

    variant = "likelihood: the label that is likeliest as the whole answer"
    mode = Mode.LIKELIHOOD

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        return choose(pipeline, samples)


class Tagged(Rated):
    """The label that a tagging head, of a model or of a published tagger, finds likeliest. Most heads know AudioSet's
    classes, which are not the same: several may be one label (the greatest counts), and three labels are none."""

    variant = "head: the label whose class, by its own name or one of AudioSet's, the tagging head finds likeliest"
    mode = Mode.HEAD

    def predict(self, pipeline: "Pipeline | Listener", samples: Sequence[Sample]) -> Iterator[list[float]]:
        for sample in samples:
            tags = {words(name): value for name, value in all_tags(pipeline, sample).items()}
            known = [[tags[name] for name in spellings(label) if name in tags] for label in sample.choices]
            if not any(known):
                raise ValueError(f"the model's tagging head knows no class of {self.name}")
            yield [max(values, default=0.0) for values in known]


class Esc50(Written):
    name = "esc50"


class Esc50Likelihood(Likeliest):
    name = "esc50_likelihood"


class Esc50Head(Tagged):
    name = "esc50_head"


class Esc10(Written):
    name, esc10 = "esc10", True


class Esc10Likelihood(Likeliest):
    name, esc10 = "esc10_likelihood", True


class Esc10Head(Tagged):
    name, esc10 = "esc10_head", True


def spellings(label: str) -> tuple[str, ...]:
    """What heads may call a label: ESC-50's and ESC-10's name of it, AudioSet's classes."""
    names = label, OTHER.get(label, label)
    return tuple(words(name) for name in (*names, *AUDIOSET.get(names[0], AUDIOSET.get(names[1], ()))))


def words(text: str) -> str:
    """Lower-case words, one space between them."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def parse(answer: str, names: Sequence[str]) -> str | None:
    """The label that the answer is, or else the only one that occurs in it as whole words; a class of ESC-10 goes by
    either of its names."""
    said = words(answer)
    spelled = {spelling: name for name in names for spelling in (name, OTHER.get(name, name))}
    if said in spelled:
        return spelled[said]
    found = {name for spelling, name in spelled.items() if f" {spelling} " in f" {said} "}
    return found.pop() if len(found) == 1 else None
