"""Batches of plain text: nothing is lost or seen twice, ranks follow one stream, and a position is where it goes on."""

import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest

from mm_rwkv7.tokenizer import Tokenizer
from training.__main__ import main
from training.data.indexed import IndexedTokens, write_tokens
from training.data.text import TextData, TextTable, open_text, prepare_text


def written(
    folder: Path, rng: random.Random, documents: int = 30, shortest: int = 1
) -> tuple[IndexedTokens, list[list[int]]]:
    """Documents whose ids tell where they stand: each id occurs once in all of them."""
    ids = iter(rng.sample(range(1, 65536), documents * 20))
    told = [list(islice(ids, rng.randint(shortest, 20))) for _ in range(documents)]
    write_tokens(told, folder / "text")
    return IndexedTokens(folder / "text"), told


def pairs(batch: dict[str, Any]) -> list[tuple[int, int]]:
    """What is read and what is to be said after it."""
    return [(int(a), int(b)) for a, b in zip(batch["ids"][0], batch["targets"][0], strict=True) if b != -100]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = ("ids", "targets", "cu_seqlens")
    return all(one[name].equal(other[name]) for name in tensors) and all(
        one[name] == other[name] for name in one.keys() - set(tensors)
    )


def test_an_epoch_of_packs_says_every_id_once(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    documents, told = written(tmp_path, random.Random(seed))
    wanted = Counter(pair for ids in told for pair in pairwise(ids))
    stream: Iterator[dict[str, Any]] = TextData(documents, context=16, seed=seed).batches()
    seen: Counter[tuple[int, int]] = Counter()
    while True:
        batch = next(stream)
        assert batch["ids"].shape == batch["targets"].shape == (1, 16), f"seed {seed}"
        if batch["position"][0][0] > 0:
            break
        seen.update(pairs(batch))
    # the pack that crosses into the next epoch holds the rest of this one
    assert seen <= wanted, f"seed {seed}"
    assert wanted - seen <= Counter(pairs(batch)), f"seed {seed}"


def test_sequences_of_a_pack_are_pieces_of_documents(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    documents, told = written(tmp_path, random.Random(seed))
    texts = [",".join(map(str, ids)) + "," for ids in told]
    for batch in islice(TextData(documents, context=23, seed=seed).batches(), 20):
        bounds = batch["cu_seqlens"].tolist()
        assert bounds[0] == 0
        assert bounds[-1] == 23
        assert len(bounds) == len(batch["samples"]) + 1
        for start, stop in pairwise(bounds):
            piece = [*batch["ids"][0, start:stop].tolist(), int(batch["targets"][0, stop - 1])]
            assert any(",".join(map(str, piece)) + "," in text for text in texts), f"seed {seed}"
            assert batch["targets"][0, start : stop - 1].equal(batch["ids"][0, start + 1 : stop]), f"seed {seed}"


def test_the_next_epoch_has_another_order_and_another_seed_too(tmp_path: Path) -> None:
    documents, told = written(tmp_path, random.Random(1), shortest=2)
    step = sum(map(len, told)) - len(told)  # an epoch is one pack

    def orders(seed: int) -> list[Sequence[str]]:
        return [batch["samples"] for batch in islice(TextData(documents, step, seed).batches(), 2)]

    first, second = orders(5)
    assert sorted(first) == sorted(second)
    assert first != second
    assert orders(5) == [first, second]
    assert orders(6)[0] != first


@pytest.mark.parametrize("carried", [False, True])
def test_a_run_goes_on_from_any_position(carried: bool, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    documents, _ = written(tmp_path, random.Random(seed))
    data = TextData(documents, context=11, seed=seed, carried=carried)
    whole = list(islice(data.batches(packs_per_step=3), 60))
    for step in range(0, 19, 3):
        position = whole[3 * step + 2]["position"]
        rest = list(islice(data.batches(position, packs_per_step=3), 57 - 3 * step))
        assert all(map(same, whole[3 * step + 3 :], rest)), f"seed {seed}, step {step}"


@pytest.mark.parametrize("carried", [False, True])
def test_two_ranks_see_what_one_sees(carried: bool, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    documents, _ = written(tmp_path, random.Random(seed))
    data = TextData(documents, context=11, seed=seed, carried=carried)
    alone = list(islice(data.batches(packs_per_step=4), 40))
    for rank in range(2):
        part = list(islice(data.batches(rank=rank, world=2, packs_per_step=4), 20))
        assert all(map(same, alone[rank::2], part)), f"seed {seed}, rank {rank}"


def test_a_lane_is_one_endless_text(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    documents, told = written(tmp_path, random.Random(seed))
    stream = list(islice(TextData(documents, 7, seed, carried=True).batches(packs_per_step=3), 3 * 90))
    read: list[int] = []
    for lane in range(3):
        batches = [batch for batch in stream if batch["lane"] == lane]
        line = [int(i) for batch in batches for i in batch["ids"][0]]
        after = [int(i) for batch in batches for i in batch["targets"][0]]
        assert after[:-1] == line[1:], f"seed {seed}, lane {lane}"
        assert all(batch["cu_seqlens"].tolist() == [0, 7] for batch in batches)
        read += line
    begins = {ids[0]: ids for ids in told}
    assert set(begins) <= set(read), f"seed {seed}: a document was not read"
    whole = ",".join(map(str, read))
    assert all(",".join(map(str, ids)) in whole for ids in told), f"seed {seed}"


def test_what_cannot_be_read_so_is_said(tmp_path: Path) -> None:
    write_tokens([[1], [2], [3]], tmp_path / "x")
    documents = IndexedTokens(tmp_path / "x")
    with pytest.raises(ValueError, match="no document has two ids"):
        next(TextData(documents, 4).batches())
    with pytest.raises(ValueError, match="3 documents are too few for 4 lanes"):
        next(TextData(documents, 4, carried=True).batches(packs_per_step=4))
    position = next(TextData(documents, 4, carried=True).batches(packs_per_step=2))["position"]
    with pytest.raises(ValueError, match="stopped with 2 lanes, 3 cannot"):
        next(TextData(documents, 4, carried=True).batches(position, packs_per_step=3))
    write_tokens([], tmp_path / "none")
    with pytest.raises(ValueError, match="no documents"):
        TextData(IndexedTokens(tmp_path / "none"), 4)


@pytest.mark.parametrize("kind", ["folder", "parquet", "jsonl", "txt"])
def test_tables_of_texts_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = ["One text.", "Another, in 中文.", "The third"]
    table = datasets.Dataset.from_dict({"text": texts})
    place = tmp_path / "data"
    place.mkdir()
    match kind:
        case "folder":
            table.save_to_disk(place)
        case "parquet":
            table.to_parquet(place / "part.parquet")
        case "jsonl":
            place = place / "part.jsonl"
            table.to_json(place)
        case _:
            place = place / "part.txt"
            place.write_text("\n".join(texts), encoding="utf-8")
    encode = Tokenizer().encode
    documents = open_text(place, encode)
    found = [documents.read(i, 0, documents.length(i)).tolist() for i in range(len(documents))]
    assert found == [[*encode(text), 0] for text in texts]
    assert documents.read(1, 2, 4).tolist() == found[1][2:4]


def test_texts_are_prepared_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["One.", "Two two."]
    datasets.Dataset.from_dict({"words": texts}).save_to_disk(tmp_path / "data")
    arguments = ["prepare", str(tmp_path / "data"), str(tmp_path / "out" / "it"), "--text", "--column", "words"]
    assert main(arguments) == 0
    encode = Tokenizer().encode
    count = sum(len(encode(text)) + 1 for text in texts)
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'it'}: {count} ids\n"
    found = IndexedTokens(tmp_path / "out" / "it")
    assert [found.read(i, 0, 99).tolist() for i in range(2)] == [[*encode(text), 0] for text in texts]
    assert main([*arguments[:-2]]) == 2
    assert "has the columns ['words'], expected 'text'" in capsys.readouterr().err


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"words": ["a"]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"has the columns \['words'\], expected 'text'"):
        TextTable(tmp_path / "data", Tokenizer().encode)
    with pytest.raises(ValueError, match="nothing: there is no such file or folder, nor a nothing"):
        open_text(tmp_path / "nothing", Tokenizer().encode)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no text: expected"):
        open_text(tmp_path / "empty", Tokenizer().encode)


def test_a_row_without_a_text_is_an_empty_one(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one two", None], "number": [1, 2]}), tmp_path / "a.parquet")
    table = TextTable(tmp_path / "a.parquet", Tokenizer().encode)
    assert [table.length(0) > 2, table.length(1)] == [True, 1]
    assert prepare_text(str(tmp_path / "a.parquet"), str(tmp_path / "out")) == table.length(0) + 1
    with pytest.raises(ValueError, match="the column 'number' has 1, expected a text"):
        TextTable(tmp_path / "a.parquet", Tokenizer().encode, "number").length(0)


def test_a_table_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be opened: [^\n]*$"):
        TextTable(tmp_path / "a.parquet", Tokenizer().encode)
