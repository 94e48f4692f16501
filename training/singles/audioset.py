"""AudioSet in its official layout: 10-second segments of videos, each with some of 527 classes.

Classes are far from equally common, so a segment is drawn as AST draws it (arXiv 2104.01778; YuanGongND/ast): in
proportion to the sum, over its classes, of one through how many segments have the class.
"""

import csv
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm_rwkv7.sounds import load_sound
from training.singles.hearing import DESCRIBE, RATE, SoundSample
from training.singles.sources import draw

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MOST_MISSING = 0.25  # of a table's segments: videos vanish, and published scores lack up to 7 % of the evaluation's
NAMED = 20  # of the segments that are missing
LONGER = 1.0  # seconds that a clip may have more than its segment: frames of the video are not cut at the sample
QUESTION = "What do you hear?"


@dataclass(frozen=True, slots=True)
class Segment:
    """A clip that is there, the seconds that it should have, and its classes by number. There are two million."""

    file: str
    seconds: float
    classes: tuple[int, ...]


class AudioSet:
    """`class_labels_indices.csv`, and of every split its `<split>_segments.csv` with its clips anywhere in `<split>/`,
    named by their YTID, or by `Y` and their YTID. The evaluation split is kept out, and only then looked for."""

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        self.folder = folder / "audioset"
        self.numbers, self.labels = read_classes(self.folder / "class_labels_indices.csv")
        self.segments = [segment for split in splits for segment in self._segments(split)]
        self.summed = np.cumsum(shares([segment.classes for segment in self.segments], len(self.labels)))

    def count(self) -> int:
        return len(self.segments)

    def texts(self) -> list[str]:
        return [DESCRIBE, QUESTION, ", ", *self.labels]

    def train(self, rng: random.Random) -> SoundSample:
        drawn = int(self.summed.searchsorted(rng.random() * self.summed[-1], side="right"))
        return self._sample(self.segments[min(drawn, len(self.segments) - 1)])

    def held_out(self, limit: int) -> list[SoundSample]:
        return [self._sample(segment) for segment in draw(self._segments("eval"), limit)]

    def _sample(self, segment: Segment) -> SoundSample:
        waveform = load_sound(segment.file, RATE).numpy()
        if len(waveform) > (segment.seconds + LONGER) * RATE:
            raise ValueError(
                f"{segment.file} has {len(waveform) / RATE:.1f} s, the table's segment {segment.seconds:.1f} s: "
                "expected the segment, not the video"
            )
        labels = tuple(self.labels[number] for number in segment.classes)
        said = ", ".join(labels)
        return SoundSample(waveform, said, ((QUESTION, said),), labels, fresh=True)

    def _segments(self, split: str) -> list[Segment]:
        table, folder = self.folder / f"{split}_segments.csv", self.folder / split
        files = clips(folder)
        found, missing = [], []
        for name, seconds, classes in read_segments(table, self.numbers):
            file = files.get(name) or files.get(f"Y{name}")
            if file is None:
                missing.append(name)
            else:
                found.append(Segment(file, seconds, classes))
        _report(table, folder, len(found), missing)
        return found


def read_classes(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Of `class_labels_indices.csv` (index, mid, display_name): the number of every mid, the names in their order."""
    rows = list(_rows(path))
    if not rows or rows[0][1] != ["index", "mid", "display_name"]:
        raise ValueError(f"{path} does not begin with index,mid,display_name")
    numbers: dict[str, int] = {}
    names: list[str] = []
    for line, row in rows[1:]:
        if len(row) != 3 or row[0] != str(len(names)):
            raise ValueError(f"{path}, line {line}: {row}, expected class {len(names)}, its mid and its name")
        numbers[row[1]] = len(names)
        names.append(row[2])
    if not names or len(numbers) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"{path} has {len(names)} classes, expected some, each with a mid and a name of its own")
    return numbers, tuple(names)


def read_segments(path: Path, numbers: dict[str, int]) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """Of a table of segments (YTID, start, end, "mids"; what begins with # is a comment) the name, the seconds and the
    classes of each."""
    known: dict[Any, Any] = {}  # many segments have the same classes and the same length: one object each is enough
    for line, row in _rows(path):
        try:
            name, start, end, mids = row
            seconds = float(end) - float(start)
            if not seconds > 0:
                raise ValueError
            classes = tuple(sorted({numbers[mid] for mid in mids.split(",")}))
        except (KeyError, ValueError) as error:
            reason = f"no class {error}" if isinstance(error, KeyError) else "expected YTID, start, end, mids"
            raise ValueError(f"{path}, line {line}: {', '.join(row)}: {reason}") from error
        yield name, known.setdefault(seconds, seconds), known.setdefault(classes, classes)


def clips(folder: Path) -> dict[str, str]:
    """The sounds that are not empty (nor links to nothing), in a folder and all below it, by their names without a
    suffix."""
    found: dict[str, str] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)
            file = os.path.join(place, name)
            if suffix.lower() not in SUFFIXES or not os.path.isfile(file) or not os.path.getsize(file):
                continue
            if (other := found.setdefault(stem, file)) is not file:
                raise ValueError(f"{other} and {file} are the same clip")
    return found


def shares(labelled: Iterable[tuple[int, ...]], classes: int) -> np.ndarray:
    """How often each segment is drawn, relative to the others: the sum of its classes' 1000 / (count + 0.01)."""
    labelled = list(labelled)
    counts = np.zeros(classes)
    for numbers in labelled:
        counts[list(numbers)] += 1
    rarity = 1000 / (counts + 0.01)
    return np.array([rarity[list(numbers)].sum() for numbers in labelled])


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table that are no comments, with their numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and not line.startswith("#"):
                    yield number, next(csv.reader([line.strip()], skipinitialspace=True, strict=True))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; the data folder is described in docs/training.md") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV table: {error}") from error


def _report(table: Path, folder: Path, found: int, missing: Sequence[str]) -> None:
    """A warning that counts and names what is missing; an error where too much is."""
    if not found:
        raise ValueError(f"{folder} has none of the {len(missing)} clips of {table}")
    if not missing:
        return
    names = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    said = f"{folder} lacks {len(missing)} of the {found + len(missing)} clips of {table.name}: {names}"
    if len(missing) > MOST_MISSING * (found + len(missing)):
        raise ValueError(f"{said}; take them out of the table if it is to be trained without them")
    warnings.warn(f"{said}; they are left out", stacklevel=2)
