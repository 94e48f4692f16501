"""Where training pictures come from: generated scenes, and the parquet tables of a data folder.

Each source gives samples by index and splits itself into what is trained on and what is kept out.
"""

import io
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image, ImageEnhance

from mm_rwkv7.synthetic import scenes

QA = tuple[str, str]  # question, answer
Given = TypeVar("Given")


@dataclass(frozen=True)
class Sample:
    """A picture and what is true of it. `label` is the class of the whole picture within its source. Generated
    scenes also tell what lies where (`objects`) and what each question is about (`kinds`). `aliases` are right answers
    beside the one in `qa`."""

    image: Image.Image
    caption: str
    qa: tuple[QA, ...]
    objects: tuple[scenes.Object, ...] = ()
    label: str | None = None
    kinds: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class SourceOf(Protocol[Given]):
    """Where samples of one kind come from."""

    @property
    def labels(self) -> Sequence[str]:
        """The classes that samples are labelled with."""

    def count(self) -> int | None:
        """How many samples there are to train on, None where they are generated."""

    def texts(self) -> list[str]:
        """Texts that between them use every word the source can say."""

    def train(self, rng: random.Random) -> Given: ...

    def held_out(self, limit: int) -> list[Given]:
        """Up to `limit` samples that `train` never gives."""


Source = SourceOf[Sample]


class Scenes:
    """Generated scenes: even seeds to train on, odd seeds kept out. Labelled by the background's colour.

    With `most`, scenes of so few objects, only to train on: they teach what questions mean, which is hard to find out
    among many.
    """

    labels: Sequence[str] = scenes.COLOURS

    def __init__(self, folder: Path, size: int, most: int | None = None) -> None:
        self.size = size
        self.most = most

    def count(self) -> None:
        return None

    def texts(self) -> list[str]:
        samples = (self._sample(seed) for seed in range(0, 6000, 2))
        return [text for s in samples for text in (s.caption, *(part for pair in s.qa for part in pair))]

    def train(self, rng: random.Random) -> Sample:
        seed = 2 * rng.getrandbits(30)
        while self.most is not None and scenes.count_objects(seed) > self.most:
            seed = 2 * rng.getrandbits(30)
        return self._sample(seed)

    def held_out(self, limit: int) -> list[Sample]:
        return [] if self.most else [self._sample(2 * i + 1, scale=2) for i in range(limit)]

    def _sample(self, seed: int, scale: int = 1) -> Sample:
        scene = scenes.sample(seed, scale * self.size)
        qa = tuple((question, answer) for question, answer, _ in scene.qa)
        kinds = tuple(kind for _, _, kind in scene.qa)
        return Sample(scene.image, scene.caption, qa, scene.objects, scene.background, kinds)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet table. A ValueError names a file that is missing or broken."""
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise ValueError(f"{path} is missing; the data folder is described in docs/training.md")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{path} is no parquet table: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def draw(kept: Sequence[Given], limit: int) -> list[Given]:
    """Up to `limit` of what is kept out, by lot: tables often lie in the order of their labels."""
    return list(kept) if limit >= len(kept) else random.Random("kept out").sample(kept, limit)


@dataclass
class Table:
    """A parquet table of pictures: rows as dictionaries with `image` decoded, split by `keeps_out`."""

    rows: list[dict[str, Any]]
    keeps_out: Callable[[int, dict[str, Any]], bool]
    training: list[dict[str, Any]] = field(init=False)
    kept: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        flags = [self.keeps_out(i, row) for i, row in enumerate(self.rows)]
        self.training = [row for row, out in zip(self.rows, flags, strict=True) if not out]
        self.kept = [row for row, out in zip(self.rows, flags, strict=True) if out]

    @classmethod
    def read(cls, path: Path, keeps_out: Callable[[int, dict[str, Any]], bool], columns: Sequence[str] = ()) -> "Table":
        rows = read_rows(path)
        if missing := [column for column in columns if column not in rows[0]]:
            raise ValueError(f"{path} lacks the columns {missing}, it has {sorted(rows[0])}")
        for number, row in enumerate(rows):
            try:
                row["name"] = row.get("name") or row["image"]["path"]
                row["image"] = Image.open(io.BytesIO(row["image"]["bytes"]))
                row["image"].load()
            except (KeyError, TypeError, OSError) as error:
                raise ValueError(f"{path}, row {number}: no picture in column image: {error!r}") from error
        return cls(rows, keeps_out)


class Emoji:
    """Emoji by name, on plain backgrounds, moved and scaled. Every emoji is trained on: what is kept out is the
    placing."""

    CANVAS = 72

    def __init__(self, folder: Path, size: int) -> None:
        self.rows = Table.read(folder / "emoji/emoji.parquet", lambda i, row: False).training
        for row in self.rows:
            row["image"] = row["image"].convert("RGBA")
        self.labels = [row["name"] for row in self.rows]

    def count(self) -> int:
        return len(self.rows)

    def texts(self) -> list[str]:
        return ["What is this emoji?", "an emoji of", *self.labels]

    def train(self, rng: random.Random) -> Sample:
        return self._sample(rng.choice(self.rows), rng)

    def held_out(self, limit: int) -> list[Sample]:
        rng = random.Random("emoji, kept out")
        rows = rng.sample(self.rows, min(limit, len(self.rows)))
        return [self._sample(row, rng) for row in rows]

    def _sample(self, row: dict[str, Any], rng: random.Random) -> Sample:
        side = round(self.CANVAS * rng.uniform(0.8, 1.2))
        picture = row["image"].resize((side, side), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (self.CANVAS, self.CANVAS), tuple(rng.randrange(256) for _ in range(3)))
        corner = (self.CANVAS - side) // 2
        canvas.paste(picture, (corner + rng.randint(-4, 4), corner + rng.randint(-4, 4)), picture)
        name, aliases = row["name"], tuple(row.get("aliases") or ())
        return Sample(canvas, f"an emoji of {name}", (("What is this emoji?", name),), label=name, aliases=aliases)


class Flowers:
    """Photos of five kinds of flowers; every fifth photo is kept out."""

    def __init__(self, folder: Path, size: int) -> None:
        self.table = Table.read(folder / "flowers/train.parquet", lambda i, row: i % 5 == 4, ("label",))
        self.labels = sorted({row["label"] for row in self.table.rows})
        self.size = size

    def count(self) -> int:
        return len(self.table.training)

    def texts(self) -> list[str]:
        return ["What flower is this?", *(f"a photo of {label}" for label in self.labels), *self.labels]

    def train(self, rng: random.Random) -> Sample:
        row = rng.choice(self.table.training)
        image = random_crop(row["image"].convert("RGB"), rng, self.size, smallest=0.3)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.7, 1.3))
        return self._sample(image, row)

    def held_out(self, limit: int) -> list[Sample]:
        return [self._sample(row["image"].convert("RGB"), row) for row in draw(self.table.kept, limit)]

    def _sample(self, image: Image.Image, row: dict[str, Any]) -> Sample:
        label = row["label"]
        return Sample(image, f"a photo of {label}", (("What flower is this?", label),), label=label)


class EasyVQA:
    """One coloured shape a picture, several questions each; every tenth picture is kept out."""

    def __init__(self, folder: Path, size: int) -> None:
        self.table = Table.read(folder / "easy_vqa/train.parquet", lambda i, row: i % 10 == 9, ("questions", "answers"))
        for row in self.table.rows:
            row["colour"], row["shape"] = self._what(row)
        known = {(row["colour"], row["shape"]) for row in self.table.rows if row["colour"] and row["shape"]}
        self.labels = sorted(map(" ".join, known))
        self.size = size

    @staticmethod
    def _what(row: dict[str, Any]) -> tuple[str, str]:
        """The shape's colour and kind as the picture's own questions tell them; "" where none does."""
        colour = shape = ""
        for question, answer in zip(row["questions"], row["answers"], strict=True):
            if re.match(r"what (color|is the color)", question):
                colour = answer
                shape = shape if question.endswith("shape?") else question.rstrip("?").split()[-1]
            elif re.match(r"what (shape|is)", question):
                shape = answer
                colour = question.split()[3] if question.startswith("what is the") else colour
        return colour, shape

    def count(self) -> int:
        return len(self.table.training)

    def texts(self) -> list[str]:
        rows = self.table.rows
        return [*(text for row in rows for text in (*row["questions"], *row["answers"])), *self.labels]

    def train(self, rng: random.Random) -> Sample:
        row = rng.choice(self.table.training)
        image = random_crop(row["image"].convert("RGB"), rng, self.size, smallest=0.9, flip=False)
        return self._sample(image, row)

    def held_out(self, limit: int) -> list[Sample]:
        return [self._sample(row["image"].convert("RGB"), row) for row in draw(self.table.kept, limit)]

    def _sample(self, image: Image.Image, row: dict[str, Any]) -> Sample:
        qa = tuple(zip(row["questions"], row["answers"], strict=True))
        what = f"{row['colour']} {row['shape'] or 'shape'}".strip()
        return Sample(image, f"a {what}", qa, label=what if what in self.labels else None)


class NLVR:
    """Three boxes of coloured shapes and a statement that is true or false; a fifth of the groups is kept out."""

    labels: Sequence[str] = ()

    def __init__(self, folder: Path, size: int) -> None:
        def keeps_out(index: int, row: dict[str, Any]) -> bool:
            return int(row["name"].split("-")[1]) % 5 == 4  # dev-<group>-<statement>-<order>.png

        self.table = Table.read(folder / "nlvr/dev.parquet", keeps_out, ("sentence", "label", "boxes"))

    def count(self) -> int:
        return len(self.table.training)

    def texts(self) -> list[str]:
        return [part for row in self.table.rows for part in self._qa(row)]

    def train(self, rng: random.Random) -> Sample:
        return self._sample(rng.choice(self.table.training))

    def held_out(self, limit: int) -> list[Sample]:
        return [self._sample(row) for row in draw(self.table.kept, limit)]

    @staticmethod
    def _qa(row: dict[str, Any]) -> QA:
        return f"{row['sentence'].strip()} True or false?", row["label"]

    def _sample(self, row: dict[str, Any]) -> Sample:
        counts = ", ".join(str(len(box)) for box in json.loads(row["boxes"]))
        return Sample(row["image"].convert("RGB"), f"three boxes with {counts} shapes", (self._qa(row),))


def random_crop(image: Image.Image, rng: random.Random, size: int, smallest: float, flip: bool = True) -> Image.Image:
    """A random part of at least `smallest` of the area, resized to size x size, mirrored half of the time."""
    width, height = image.size
    share = rng.uniform(smallest, 1) ** 0.5
    stretch = rng.uniform(0.87, 1.15)
    w, h = min(width, width * share * stretch), min(height, height * share / stretch)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and rng.random() < 0.5 else image


SOURCES: dict[str, Callable[[Path, int], Source]] = {
    "scenes": Scenes,
    "scenes_of_2": lambda folder, size: Scenes(folder, size, most=2),
    "scenes_of_4": lambda folder, size: Scenes(folder, size, most=4),
    "emoji": Emoji,
    "flowers": Flowers,
    "easy_vqa": EasyVQA,
    "nlvr": NLVR,
}
