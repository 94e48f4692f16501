"""Sounds that people described: AudioCaps and Clotho, in their official layouts."""

import csv
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

from mm_rwkv7.sounds import load_sound
from training.singles.hearing import DESCRIBE, RATE, SoundSample
from training.singles.sources import draw


class Captioned:
    """Sounds of a folder with one or several captions each, read from their files when they are drawn."""

    labels: Sequence[str] = ()

    def __init__(self, training: dict[Path, list[str]], kept: dict[Path, list[str]]) -> None:
        self.training, self.kept = list(training.items()), list(kept.items())

    def count(self) -> int:
        return len(self.training)

    def texts(self) -> list[str]:
        return [DESCRIBE, *(caption for _, captions in (*self.training, *self.kept) for caption in captions)]

    def train(self, rng: random.Random) -> SoundSample:
        path, captions = rng.choice(self.training)
        return self._sound(path, rng.choice(captions))

    def held_out(self, limit: int) -> list[SoundSample]:
        return [self._sound(path, captions[0]) for path, captions in draw(self.kept, limit)]

    def _sound(self, path: Path, caption: str) -> SoundSample:
        return SoundSample(load_sound(path, RATE).numpy(), caption, ((DESCRIBE, caption),), (), fresh=True)


class AudioCaps(Captioned):
    """AudioCaps: `train.csv` and `test.csv` (audiocap_id, youtube_id, start_time, caption), sounds in `train/` and
    `test/`, each named by the id of its caption or of its video."""

    def __init__(self, folder: Path) -> None:
        def captions(split: str) -> dict[Path, list[str]]:
            files = {file.stem: file for file in (folder / "audiocaps" / split).glob("*")}
            found: dict[Path, list[str]] = {}
            rows = read_csv(folder / f"audiocaps/{split}.csv", ("audiocap_id", "youtube_id", "caption"))
            for row in rows:
                names = (row["audiocap_id"], row["youtube_id"], "Y" + row["youtube_id"])
                file = next((files[name] for name in names if name in files), None)
                if file is not None:
                    found.setdefault(file, []).append(row["caption"])
            return _checked(found, len(rows) - sum(map(len, found.values())), folder / "audiocaps" / split)

        super().__init__(captions("train"), captions("test"))


class Clotho(Captioned):
    """Clotho: `clotho_captions_development.csv` and `clotho_captions_evaluation.csv` (file_name, caption_1 to
    caption_5), sounds in `development/` and `evaluation/`."""

    def __init__(self, folder: Path) -> None:
        def captions(split: str) -> dict[Path, list[str]]:
            columns = ("file_name", *(f"caption_{i}" for i in range(1, 6)))
            rows = read_csv(folder / f"clotho/clotho_captions_{split}.csv", columns)
            sounds = folder / "clotho" / split
            found = {sounds / row["file_name"]: [row[column] for column in columns[1:]] for row in rows}
            there = {file: texts for file, texts in found.items() if file.is_file()}
            return _checked(there, len(rows) - len(there), sounds)

        super().__init__(captions("development"), captions("evaluation"))


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with (at least) these columns. A ValueError names the file when it is missing or another."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; the data folder is described in docs/training.md") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV table: {error}") from error
    for number, row in enumerate(rows, start=2):
        if missing := [column for column in columns if not row.get(column)]:
            raise ValueError(f"{path}, line {number}: nothing in {', '.join(missing)}")
    return rows


def _checked(found: dict[Path, list[str]], missing: int, folder: Path) -> dict[Path, list[str]]:
    """What was found, with a warning when sounds are missing, as they are of every collection from the web."""
    if not found:
        raise ValueError(f"{folder} has none of the {missing} sounds of its table")
    if missing:
        warnings.warn(f"{folder}: {missing} rows of its table have no sound here and are left out", stacklevel=2)
    return found
