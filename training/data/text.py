"""Plain text to pre-train a language model on: documents packed with a fresh state each, or one endless stream a lane.

T is the pack's budget of ids, S sequences in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from mm_rwkv7.tokenizer import END_OF_TEXT, Tokenizer
from training.data.indexed import IndexedTokens, write_indexed

FILES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
Piece = tuple[int, int, int]  # document, first id, the id after the last


class Documents(Protocol):
    """Documents of at least one id, by number."""

    def __len__(self) -> int: ...

    def length(self, document: int) -> int: ...

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Its ids from `start` to `stop`, or to its end, as int64."""


class TextTable:
    """The texts of a Hugging Face data set, each a document that ends with the end of text. They are encoded when they
    are read, for their lengths too: what is read more than once is better written as `.bin` and `.idx` first."""

    def __init__(self, path: str | Path, encode: Callable[[str], list[int]], column: str = "text") -> None:
        """path: a folder of `save_to_disk`, one of parquet files, a file (.parquet, .jsonl, .json, .txt), or
        "hf:owner/name"."""
        self.rows = _open(str(path))
        if column not in self.rows.column_names:
            raise ValueError(f"{path} has the columns {self.rows.column_names}, expected {column!r}")

        @lru_cache(maxsize=16)
        def ids(document: int) -> np.ndarray:
            return np.array([*encode(_said(self.rows[document], column)), END_OF_TEXT], dtype=np.int64)

        self._ids = ids

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, document: int) -> int:
        return len(self._ids(document))

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        return self._ids(document)[start:stop]


def open_text(path: str | Path, encode: Callable[[str], list[int]], column: str = "text") -> Documents:
    """The documents of `.bin` and `.idx` (named by either, or without an ending), or else of a table of texts."""
    plain = Path(path)
    if plain.suffix in (".bin", ".idx") or plain.with_name(f"{plain.name}.idx").is_file():
        return IndexedTokens(plain)
    return TextTable(path, encode, column)


def prepare_text(path: str, out: str, column: str = "text") -> int:
    """Write a table's texts as World ids to `out`.bin and `out`.idx; returns how many ids."""
    rows = TextTable(path, Tokenizer().encode, column).rows
    return write_indexed((_said(row, column) for row in tqdm(rows, desc=Path(out).name, unit="text")), out)


class TextData:
    """Batches of plain text, as `Mixture` gives them of conversations.

    `carried=False`: documents in an order drawn anew each epoch, one after another, cut where a pack ends, each piece
    with a state of its own: every pack is full.
    `carried=True`: each of the `packs_per_step` packs is a lane, which reads its share of the documents as one endless
    text, T ids a step. A batch then says which `lane` it is; whoever trains on it carries that lane's state from step
    to step.
    """

    def __init__(
        self, documents: Documents, context: int, seed: int = 0, carried: bool = False, vocab_size: int | None = None
    ) -> None:
        if context < 1:
            raise ValueError(f"context is {context}, expected at least 1")
        if not len(documents):
            raise ValueError("there are no documents to train on")
        self.documents, self.context, self.seed, self.carried = documents, context, seed, carried
        self.vocab_size = vocab_size

    def batches(
        self, position: Any = None, rank: int = 0, world: int = 1, packs_per_step: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Endless: pack i of each step's goes to rank i % world. A batch is

            {"ids": (1, T) int64, "targets": (1, T) int64, "cu_seqlens": (S + 1,) int32, "samples": what it is made of,
             "tokens": T, "position": where the step after it begins, "lane": only if carried}

        and what says that it has neither pictures nor sounds. ValueError for an id beyond `vocab_size`.
        """
        if packs_per_step < 1 or packs_per_step % world or not 0 <= rank < world:
            raise ValueError(
                f"rank {rank} of {world} takes from steps of {packs_per_step} packs, expected a multiple of {world}"
            )
        lanes = packs_per_step if self.carried else 1
        walks = [_Walk(self.documents, self.seed, lane, lanes) for lane in range(lanes)]
        if position is not None:
            if len(position) != lanes:
                raise ValueError(f"the run stopped with {len(position)} lanes, {lanes} cannot go on from there")
            for walk, place in zip(walks, position, strict=True):
                walk.epoch, walk.place, walk.start = place
        while True:
            step = []
            for pack in range(packs_per_step):
                walk = walks[pack % lanes]
                pieces = walk.take(self.context, spare=0 if self.carried else 1)
                if pack % world == rank:
                    step.append(self._joined(walk, pieces) | {"lane": pack} if self.carried else self._packed(pieces))
            after = [[walk.epoch, walk.place, walk.start] for walk in walks]
            for batch in step:
                if self.vocab_size is not None and (largest := int(batch["ids"].max())) >= self.vocab_size:
                    raise ValueError(
                        f"{', '.join(batch['samples'])} has the id {largest}, the model has {self.vocab_size} rows"
                    )
                yield {**batch, "tokens": self.context, "position": after}

    def _packed(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        read = [self.documents.read(document, start, stop + 1) for document, start, stop in pieces]
        ends = np.cumsum([0, *(stop - start for _, start, stop in pieces)])
        ids, targets = (np.concatenate([piece[cut] for piece in read]) for cut in (slice(-1), slice(1, None)))
        return _batch(ids, targets, ends, pieces)

    def _joined(self, walk: "_Walk", pieces: Sequence[Piece]) -> dict[str, Any]:
        (after,) = walk.peek()
        line = np.concatenate([*(self.documents.read(*piece) for piece in pieces), [after]])
        return _batch(line[:-1], line[1:], np.array([0, self.context]), pieces)


class _Walk:
    """The documents of one lane in the order of each epoch, and the place in them."""

    def __init__(self, documents: Documents, seed: int, lane: int, lanes: int) -> None:
        if len(documents) < lanes:
            raise ValueError(f"{len(documents)} documents are too few for {lanes} lanes")
        self.documents, self.seed, self.lane, self.lanes = documents, seed, lane, lanes
        self.epoch = self.place = self.start = 0
        self._drawn = (-1, np.zeros(0, dtype=np.int64))

    def take(self, count: int, spare: int) -> list[Piece]:
        """Go `count` ids on. The last `spare` of each document are not taken: there is nothing to be said after
        them."""
        pieces: list[Piece] = []
        barren = 0
        while count:
            document = self._document()
            room = self.documents.length(document) - spare - self.start
            taken = max(0, min(count, room))
            if taken:
                pieces.append((document, self.start, self.start + taken))
                count -= taken
                barren = 0
            self.start += taken
            if taken >= room:
                self.place, self.start, barren = self.place + 1, 0, barren + 1
            if barren > len(self.documents):
                raise ValueError("no document has two ids or more: there is nothing to be said after any")
        self._document()  # an epoch's end and the next one's beginning are the same place: tell it in one way
        return pieces

    def peek(self) -> np.ndarray:
        """The id that comes next (1,)."""
        return self.documents.read(self._document(), self.start, self.start + 1)

    def _document(self) -> int:
        while True:
            if self._drawn[0] != self.epoch:
                drawn = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.documents))
                self._drawn = (self.epoch, drawn[self.lane :: self.lanes])
            if self.place < len(self._drawn[1]):
                return int(self._drawn[1][self.place])
            self.epoch, self.place = self.epoch + 1, 0


def _batch(ids: np.ndarray, targets: np.ndarray, ends: np.ndarray, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Pictures and sounds are what a stage looks for in any batch, and there are none."""
    return {
        "ids": torch.from_numpy(ids)[None],
        "targets": torch.from_numpy(targets)[None],
        "cu_seqlens": torch.from_numpy(ends.astype(np.int32)),
        "samples": [f"{document}:{start}-{stop}" for document, start, stop in pieces],
        "pixels": None,
        "tiles": (),
        "windows": None,
        "frames": None,
        "faults": [],
    }


def _said(row: Mapping[str, Any], column: str) -> str:
    """A row's text; one without any is empty."""
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"the column {column!r} has {text!r:.60}, expected a text")
    return text


def _open(path: str) -> Any:
    import datasets

    if path.startswith("hf:"):
        return _loaded(path, path.removeprefix("hf:"))
    plain = Path(path)
    if (plain / "dataset_info.json").is_file():
        return datasets.load_from_disk(path)
    if not plain.exists():
        raise ValueError(f"{path}: there is no such file or folder, nor a {plain.name}.bin and {plain.name}.idx")
    files = [plain] if plain.is_file() else sorted(plain.rglob("*.parquet"))
    if not files or any(file.suffix not in FILES for file in files):
        raise ValueError(
            f"{path} is no text: expected .bin and .idx, a folder of `save_to_disk` or of parquet files, "
            f"a file ({', '.join(FILES)}) or hf:owner/name"
        )
    kind = FILES[files[0].suffix]
    return _loaded(path, kind, data_files=[str(file) for file in files])


def _loaded(path: str, name: str, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, split="train", **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{path} cannot be opened: {' '.join(str(error).split())}") from error
