"""Tokens on disk as RWKV-LM, MiniPile and Megatron keep them: `name.bin` holds ids, `name.idx` says where documents
lie.

`.idx`, little-endian: the magic, the version (u64), a code of the ids' type (u8), the numbers of sequences (u64) and of
document bounds (u64); then each sequence's length in ids (i32), its first byte in `.bin` (i64), and the bounds of
documents, counted in sequences (i64): 0 first, the number of sequences last."""

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = "<9sQBQQ"
HEADER_SIZE = 34
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floating point, which no id is


class IndexedTokens:
    """A pair of files, opened by either name or their common one and mapped into memory.

    A ValueError names the file and the size or number that does not fit: nothing that the index says is believed before
    it is compared with the files' lengths."""

    def __init__(self, path: str | Path) -> None:
        stem = Path(path)
        stem = stem.with_suffix("") if stem.suffix in (".bin", ".idx") else stem
        self.index, self.data = (stem.with_name(f"{stem.name}.{end}") for end in ("idx", "bin"))
        for file in (self.index, self.data):
            if not file.is_file():
                raise ValueError(f"{file} does not exist; tokens are a pair of files, .bin and .idx")
        dtype, lengths, pointers, bounds = self._read_index()
        self._check(dtype, lengths, pointers, bounds)
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        starts = ends[bounds]
        whole = np.concatenate([[True], starts[1:] > starts[:-1]])
        self.starts: np.ndarray = starts[whole]  # (documents + 1,) in ids; documents of nothing are left out
        self.ids: np.ndarray = np.memmap(self.data, dtype, "r") if self.starts[-1] else np.zeros(0, dtype)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.starts) - 1

    def length(self, document: int) -> int:
        return int(self.starts[document + 1] - self.starts[document])

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """The ids from `start` to `stop` of a document, as int64."""
        first = int(self.starts[document])
        return self.ids[first + start : first + min(stop, self.length(document))].astype(np.int64)

    def _read_index(self) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
        size = self.index.stat().st_size
        with self.index.open("rb") as file:
            head = file.read(HEADER_SIZE)
        if len(head) < HEADER_SIZE:
            raise ValueError(f"{self.index} has {size} bytes, expected at least the {HEADER_SIZE} of a header")
        magic, version, code, sequences, count = struct.unpack(HEADER, head)
        if magic != MAGIC:
            raise ValueError(f"{self.index} begins with {magic!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise ValueError(f"{self.index} is of version {version}, expected {VERSION}")
        if code not in TYPES:
            raise ValueError(f"{self.index} has ids of type code {code}, expected one of {sorted(TYPES)}: integers")
        if not 0 < count <= size or sequences > size:
            raise ValueError(f"{self.index} tells of {sequences} sequences and {count} bounds in {size} bytes")
        expected = HEADER_SIZE + 12 * sequences + 8 * count
        if size != expected:
            raise ValueError(
                f"{self.index} has {size} bytes, expected {expected} "
                f"for {sequences} sequences and {count} bounds of documents"
            )
        at = np.cumsum([HEADER_SIZE, 4 * sequences, 8 * sequences])
        lengths, pointers, bounds = (
            np.memmap(self.index, dtype, "r", int(offset), (number,)) if number else np.zeros(0, dtype)
            for dtype, offset, number in zip(("<i4", "<i8", "<i8"), at, (sequences, sequences, count), strict=True)
        )
        return np.dtype(TYPES[code]), lengths, pointers, bounds

    def _check(self, dtype: np.dtype, lengths: np.ndarray, pointers: np.ndarray, bounds: np.ndarray) -> None:
        if len(lengths) and lengths.min() < 0:
            raise ValueError(f"{self.index}: sequence {int(lengths.argmin())} has length {lengths.min()}")
        ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
        wrong = np.flatnonzero(pointers != ends - lengths.astype(np.int64) * dtype.itemsize)
        if len(wrong):
            first = int(wrong[0])
            expected = 0 if first == 0 else int(ends[first - 1])
            raise ValueError(
                f"{self.index}: sequence {first} begins at byte {pointers[first]}, "
                f"expected {expected}, where the one before it ends"
            )
        size, wanted = self.data.stat().st_size, int(ends[-1]) if len(ends) else 0
        if size != wanted:
            raise ValueError(f"{self.data} has {size} bytes, expected {wanted}, as {self.index.name} says")
        if bounds[0] != 0 or bounds[-1] != len(lengths) or (np.diff(bounds) < 0).any():
            raise ValueError(f"{self.index}: the bounds of documents do not rise from 0 to {len(lengths)} sequences")


def write_tokens(documents: Iterable[Iterable[int]], out: str | Path, largest: int = 65535) -> int:
    """Write ids, each document one sequence, to `out`.bin and `out`.idx; returns the number of ids. They take two bytes
    each where the `largest` allows it, else four. Both files come to their places when both are whole; what ends the
    writing before leaves neither."""
    dtype = np.dtype(TYPES[8] if largest < 1 << 16 else TYPES[4])
    lengths: list[int] = []
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    data, index = (out.with_name(f"{out.name}.{end}") for end in ("bin", "idx"))
    drafts = [file.with_name(f"{file.name}.tmp") for file in (data, index)]
    try:
        with drafts[0].open("wb") as file:
            for number, document in enumerate(documents):
                ids = np.fromiter(document, dtype=np.int64)
                if len(ids) and not 0 <= ids.min() <= ids.max() <= largest:
                    raise ValueError(
                        f"document {number} has ids from {ids.min()} to {ids.max()}, expected 0 to {largest}"
                    )
                file.write(ids.astype(dtype).tobytes())
                lengths.append(len(ids))
        sizes = np.array(lengths, dtype=np.int64)
        pointers = (np.cumsum(sizes) - sizes) * dtype.itemsize
        code = next(code for code, name in TYPES.items() if np.dtype(name) == dtype)
        with drafts[1].open("wb") as file:
            file.write(struct.pack(HEADER, MAGIC, VERSION, code, len(sizes), len(sizes) + 1))
            for numbers, kind in ((sizes, "<i4"), (pointers, "<i8"), (np.arange(len(sizes) + 1), "<i8")):
                file.write(numbers.astype(kind).tobytes())
        for draft, target in zip(drafts, (data, index), strict=True):
            draft.replace(target)
    finally:  # the drafts are gone to their places, or nothing goes on with them
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return int(sizes.sum())


def write_indexed(texts: Iterable[str], out: str | Path, encode: Callable[[str], list[int]] | None = None) -> int:
    """Write texts to `out`.bin and `out`.idx, each a document that ends with the end of text (id 0), in World ids or
    those of `encode`; returns the number of ids."""
    if encode is None:
        from mm_rwkv7.tokenizer import Tokenizer

        encode = Tokenizer().encode
    return write_tokens(_ended(texts, encode), out)


def _ended(texts: Iterable[str], encode: Callable[[str], list[int]]) -> Iterator[list[int]]:
    from mm_rwkv7.tokenizer import END_OF_TEXT

    for text in texts:
        yield [*encode(text), END_OF_TEXT]
