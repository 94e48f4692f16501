"""`.bin/.idx`: what is written comes back, what others write is read, and what does not fit is named."""

import random
import secrets
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path

import pytest

from mm_rwkv7.tokenizer import Tokenizer
from training.data.indexed import IndexedTokens, write_indexed, write_tokens

CODES = {1: 1, 3: 2, 4: 4, 5: 8, 8: 2}  # type code -> bytes an id


def published(sequences: Sequence[Sequence[int]], code: int, bounds: Sequence[int]) -> tuple[bytes, bytes]:
    """The layout as Megatron-LM's and RWKV-LM's sources describe it, written by nothing of ours."""
    size = CODES[code]

    def numbers(values: Sequence[int], width: int) -> bytes:
        return b"".join(value.to_bytes(width, "little") for value in values)

    starts = [size * sum(map(len, sequences[:i])) for i in range(len(sequences))]
    index = b"MMIDIDX\x00\x00" + numbers([1], 8) + numbers([code], 1) + numbers([len(sequences), len(bounds)], 8)
    index += numbers([len(sequence) for sequence in sequences], 4) + numbers(starts, 8) + numbers(bounds, 8)
    return b"".join(numbers(sequence, size) for sequence in sequences), index


def draw(rng: random.Random, documents: int, largest: int = 65535) -> list[list[int]]:
    return [[rng.randint(0, largest) for _ in range(rng.randint(1, 9))] for _ in range(documents)]


def documents_of(found: IndexedTokens) -> list[list[int]]:
    return [found.read(i, 0, found.length(i)).tolist() for i in range(len(found))]


@pytest.mark.parametrize("code", list(CODES))
def test_a_file_of_the_published_layout_is_read(code: int, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    sequences = draw(rng, 12, largest=127)
    bounds = [0, 1, 4, 4, 9, 12]  # documents of several sequences, and one of none
    data, index = published(sequences, code, bounds)
    (tmp_path / "a.b.bin").write_bytes(data)
    (tmp_path / "a.b.idx").write_bytes(index)
    expected = [list(chain(*sequences[i:j])) for i, j in pairwise(bounds) if i < j]
    for name in ("a.b", "a.b.bin", "a.b.idx"):
        assert documents_of(IndexedTokens(tmp_path / name)) == expected, f"seed {seed}"


@pytest.mark.parametrize(("largest", "code"), [(65535, 8), (100_000, 4)])
def test_what_is_written_is_the_published_layout(largest: int, code: int, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    documents = draw(random.Random(seed), 20, largest)
    assert write_tokens(iter(documents), tmp_path / "x", largest) == sum(map(len, documents))
    files = (tmp_path / "x.bin").read_bytes(), (tmp_path / "x.idx").read_bytes()
    assert files == published(documents, code, range(21)), f"seed {seed}"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.bin", "x.idx"]
    assert documents_of(IndexedTokens(tmp_path / "x")) == documents, f"seed {seed}"


def test_texts_come_back_with_their_ends(tmp_path: Path) -> None:
    texts = ["Hello, world.", "", "Grüße aus der 東京", "a" * 100]
    write_indexed(texts, tmp_path / "new" / "texts")
    found = documents_of(IndexedTokens(tmp_path / "new" / "texts"))
    assert [ids[-1] for ids in found] == [0] * 4
    assert [Tokenizer().decode(ids[:-1]) for ids in found] == texts


def test_nothing_is_left_where_a_document_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="document 1 has ids from 3 to 70000, expected 0 to 65535"):
        write_tokens([[1, 2], [3, 70000]], tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_what_was_there_and_no_draft(tmp_path: Path) -> None:
    def interrupted() -> Iterator[list[int]]:
        yield [5]
        raise KeyboardInterrupt

    write_tokens([[1, 2]], tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        write_tokens(interrupted(), tmp_path / "x")
    assert documents_of(IndexedTokens(tmp_path / "x")) == [[1, 2]]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.bin", "x.idx"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data, index: (data, index[:20]), "has 20 bytes, expected at least the 34 of a header"),
        (lambda data, index: (data, b"XX" + index[2:]), "begins with"),
        (lambda data, index: (data, index[:9] + b"\x02" + index[10:]), "is of version 2, expected 1"),
        (lambda data, index: (data, index[:17] + b"\x07" + index[18:]), "type code 7, expected one of"),
        (lambda data, index: (data, index[:25] + b"\x7f" + index[26:]), "sequences and 4 bounds in 102 bytes"),
        (lambda data, index: (data, index[:18] + b"\x04" + index[19:]), "has 102 bytes, expected 114 for 4 sequences"),
        (lambda data, index: (data, index[:-3]), "has 99 bytes, expected 102 for 3 sequences and 4 bounds"),
        (lambda data, index: (data, index[:37] + b"\xff" + index[38:]), "sequence 0 has length -"),
        (lambda data, index: (data, index[:54] + b"\x05" + index[55:]), "sequence 1 begins at byte 5, expected 4"),
        (lambda data, index: (data[:-1], index), "has 11 bytes, expected 12"),
        (lambda data, index: (data + b"\x00", index), "has 13 bytes, expected 12"),
        (lambda data, index: (data, index[:-8] + b"\x02" + index[-7:]), "do not rise from 0 to 3"),
        (lambda data, index: (data, index[:-24] + b"\x03" + index[-23:]), "do not rise from 0 to 3"),
    ],
)
def test_every_damage_is_named(damage: object, reason: str, tmp_path: Path) -> None:
    assert callable(damage)
    data, index = damage(*published([[1, 2], [3], [4, 5, 6]], 8, [0, 1, 2, 3]))
    (tmp_path / "x.bin").write_bytes(data)
    (tmp_path / "x.idx").write_bytes(index)
    with pytest.raises(ValueError, match=reason):
        IndexedTokens(tmp_path / "x")


def test_the_missing_half_is_named(tmp_path: Path) -> None:
    write_tokens([[1]], tmp_path / "x")
    (tmp_path / "x.bin").unlink()
    with pytest.raises(ValueError, match=r"x\.bin does not exist"):
        IndexedTokens(tmp_path / "x.idx")
