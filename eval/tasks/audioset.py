"""AudioSet's evaluation set: which of 527 classes are heard in ten seconds of sound, in three ways that no table mixes.

A clip whose sound is gone (YouTube takes videos away) is predicted as an empty list, so that predictions say by
themselves which clips they were scored on.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.choosing import choices, with_state
from eval.files import read_csv, unique
from eval.finite import finite
from eval.metrics.audioset import metrics, per_class
from eval.metrics.resampled import mean_average_precision
from eval.run import open_source
from eval.task import Mode, Sample, Scores, Task

if TYPE_CHECKING:
    from torch import Tensor

    from mm_rwkv7.listening import Listener
    from mm_rwkv7.pipeline import Pipeline

ORIGIN = "https://research.google.com/audioset/download.html"
SEGMENTS, LABELS, SOUNDS = "eval_segments.csv", "class_labels_indices.csv", "eval_segments"
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
FORMATS = (".wav", ".flac", ".ogg", ".mp3")
CLASSES = 527
QUESTION = "What do you hear?"


class AudioSet(Task):
    """What the three have in common. DATA/audioset holds the two official tables and the folder `eval_segments` with
    the clips, cut to their ten seconds and named by their YTID (PANNs' files, which put a Y before it, are found
    too)."""

    folder = "audioset"

    def samples(self, data: Path) -> Sequence[Sample]:
        sounds = clips(data / SOUNDS)
        names = tuple(class_names(data).values())
        found = [
            Sample(
                id=clip,
                question=QUESTION,
                sounds=(sounds[clip],) if clip in sounds else (),
                choices=names,
                expected=", ".join(labels),
            )
            for clip, labels in segments(data).items()
        ]
        if sounds and not any(sample.sounds for sample in found):
            raise ValueError(f"{data / SOUNDS}: none of the {len(sounds)} sounds is named by a YTID of {SEGMENTS}")
        return found

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        labels, names = segments(data), tuple(class_names(data).values())
        scored = {clip: row for clip, row in predictions.items() if row}
        if not scored:
            raise ValueError(f"{data}: all of the {len(predictions)} clips are predicted as gone")
        for clip, row in scored.items():
            if len(row) != len(names):
                raise ValueError(f"the prediction of {clip!r} has {len(row)} numbers, expected {len(names)}")
        targets = {clip: [int(name in labels[clip]) for name in names] for clip in scored}
        found = metrics(list(scored.values()), list(targets.values()))
        gone = len(predictions) - len(scored)
        columns = zip(names, zip(*scored.values(), strict=True), zip(*targets.values(), strict=True), strict=True)
        precisions = {name: per_class(column, wanted)[0] for name, column, wanted in columns}
        ids = hashlib.sha256("".join(f"{clip}\n" for clip in sorted(scored)).encode()).hexdigest()
        kept, notes = finite({**found, "clips": len(scored), "clips_gone": gone})
        return Scores(
            main="mAP",
            metrics=kept,
            per_sample={clip: per_class(row, targets[clip])[0] or 0.0 for clip, row in scored.items()},
            corpus={"mAP": mean_average_precision(scored, targets)},
            breakdown={"average precision": {name: value for name, value in precisions.items() if value is not None}},
            notes=(
                f"{len(scored)} clips and {found['classes']} classes scored; {gone} clips have no sound file.",
                f"sha256 of the sorted ids of the clips, one a line: {ids}",
                *notes,
            ),
        )


class Head(AudioSet):
    """The tagging head's probabilities: of a model, or of a published tagger."""

    name = "audioset"
    variant = "head: the probabilities that the model's tagging head gives to the 527 classes, means over windows"
    mode = Mode.HEAD

    def predict(self, pipeline: "Pipeline | Listener", samples: Sequence[Sample]) -> Iterator[list[float]]:
        for sample in samples:
            yield tag(pipeline, sample) if sample.sounds else []


class Likelihood(AudioSet):
    """What the language model would answer."""

    name = "audioset_likelihood"
    variant = (
        "likelihood: of each class's display name as the answer to the question, the mean logarithm of its tokens' "
        "probabilities, less the same without the sound"
    )
    mode = Mode.LIKELIHOOD

    def __init__(self) -> None:
        self._prior: tuple[Pipeline, list[float]] | None = None  # whose, and without a sound

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        for sample, state in with_state(pipeline, samples):
            if state is None:
                yield []
                continue
            if self._prior is None or self._prior[0] is not pipeline:
                self._prior = pipeline, [one.mean for one in choices(pipeline, sample, None)]
            heard = [one.mean for one in choices(pipeline, sample, state)]
            yield [with_sound - without for with_sound, without in zip(heard, self._prior[1], strict=True)]


class Embedding(AudioSet):
    """What the language model has of the sound and of the names."""

    name = "audioset_embedding"
    variant = (
        "embedding: the cosine between Pipeline.embed of a user's turn with the sound and the question, and "
        "Pipeline.embed of a user's turn with the class's display name, each less the mean over the 527 names"
    )
    mode = Mode.EMBEDDING

    def __init__(self) -> None:
        self._names: tuple[Pipeline, Tensor, Tensor] | None = None  # whose, directions (C, D), mean (D,)

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        import torch
        from torch.nn import functional as F

        for sample in samples:
            if not sample.sounds:
                yield []
                continue
            if self._names is None or self._names[0] is not pipeline:
                rows = torch.stack([pipeline.embed([{"role": "user", "content": name}]) for name in sample.choices])
                self._names = pipeline, F.normalize(rows - rows.mean(0), dim=-1), rows.mean(0)
            _, directions, mean = self._names
            sound = {"type": "audio", "audio": open_source(sample.sounds[0])}
            words = {"type": "text", "text": sample.question}
            heard = pipeline.embed([{"role": "user", "content": [sound, words]}])
            yield (directions @ F.normalize(heard - mean, dim=-1)).tolist()


def tag(pipeline: "Pipeline | Listener", sample: Sample) -> list[float]:
    """The head's probability of each of the sample's choices."""
    tags = all_tags(pipeline, sample)
    if missing := [name for name in sample.choices if name not in tags]:
        raise ValueError(
            f"the model's tagging head does not know {len(missing)} of AudioSet's {len(sample.choices)} classes, "
            f"{missing[0]!r} among them"
        )
    return [tags[name] for name in sample.choices]


def all_tags(pipeline: "Pipeline | Listener", sample: Sample) -> dict[str, float]:
    """The head's probability of each of its classes."""
    return dict(pipeline.tag(open_source(sample.sounds[0]), top=sys.maxsize))


def class_names(data: Path) -> dict[str, str]:
    """mid -> display name, in the official order."""
    records = unique(read_csv(data / LABELS, ORIGIN), lambda record: record["mid"].text())
    for number, record in enumerate(records.values()):
        if record["index"].text() != str(number):
            raise record.error(f"the index is {record['index'].text()!r}, expected {number}")
    names = unique(records.values(), lambda record: record["display_name"].text())
    if len(names) != CLASSES:
        raise ValueError(f"{data / LABELS} has {len(names)} classes, expected {CLASSES}")
    return dict(zip(records, names, strict=True))


def segments(data: Path) -> dict[str, list[str]]:
    """YTID -> display names of its classes."""
    names = class_names(data)
    records = unique(read_csv(data / SEGMENTS, ORIGIN, COLUMNS, "#"), lambda record: record["YTID"].text())
    found = {}
    for clip, record in records.items():
        mids = record["positive_labels"].text().split(",")
        if unknown := [mid for mid in mids if mid not in names]:
            raise record.error(f"the label {unknown[0]!r} is not in {LABELS}")
        found[clip] = [names[mid] for mid in mids]
    return found


def clips(folder: Path) -> dict[str, Path]:
    """YTID -> its sound, of those that are there."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    sounds = {path.stem: path for path in paths if path.suffix.lower() in FORMATS}
    return {stem[1:] if len(stem) == 12 and stem[0] == "Y" else stem: path for stem, path in sounds.items()}
