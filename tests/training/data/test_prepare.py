"""Shards hold what was put in, however often writing them was interrupted."""

import io
import json
import multiprocessing
import os
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.data.conversing import picture_bytes, plain, write_llava
from training.__main__ import main
from training.data import prepare as module
from training.data.conversations import Conversation, Fault
from training.data.llava import Llava
from training.data.prepare import prepare
from training.data.readers import open_reader
from training.data.shards import Shards


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_give_back_every_conversation(tmp_path: Path, seed: int) -> None:
    path, _ = write_llava(tmp_path / "in", seed, 23, sounds=True)
    reader = Llava(path)
    assert prepare(reader, tmp_path / "out", 5, seed) == (23, 0)
    shards = open_reader(tmp_path / "out")
    assert isinstance(shards, Shards)
    assert list(shards.blocks) == [5, 5, 5, 5, 3]
    found = [repr(plain(shards[i])) for i in range(23)]
    wanted = [repr(plain(reader[i])) for i in range(23)]
    assert sorted(found) == sorted(wanted), f"seed {seed}"
    assert found != wanted, f"seed {seed}: they were not shuffled"


def test_webdataset_reads_the_shards(tmp_path: Path, seed: int) -> None:
    from webdataset import WebDataset

    path, _ = write_llava(tmp_path / "in", seed, 7)
    prepare(Llava(path), tmp_path / "out", 4, seed)
    shards = sorted(str(shard) for shard in (tmp_path / "out").glob("*.tar"))
    ids = [json.loads(sample["json"])["id"] for sample in WebDataset(shards, shardshuffle=False)]
    assert sorted(ids) == sorted(f"{i} (r{i})" for i in range(7))


def test_an_interrupted_run_ends_with_the_same_files(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_llava(tmp_path / "in", seed, 20)
    reader = Llava(path)
    prepare(reader, tmp_path / "whole", 6, seed)
    rng = random.Random(seed)
    left = {"calls": 0}
    writing = module._members

    def failing(conversation: Conversation) -> Any:
        left["calls"] -= 1
        if left["calls"] < 0:
            raise KeyboardInterrupt
        return writing(conversation)

    monkeypatch.setattr(module, "_members", failing)
    for _ in range(100):
        left["calls"] = rng.randint(6, 12)
        try:
            prepare(reader, tmp_path / "pieces", 6, seed)
            break
        except KeyboardInterrupt:
            names = set(contents(tmp_path / "pieces")) - {"index.json"}
            assert all(name.startswith("shard-") for name in names), f"seed {seed}: {names}"
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole"), f"seed {seed}"
    before = {name: os.stat(tmp_path / "whole" / name).st_mtime_ns for name in contents(tmp_path / "whole")}
    left["calls"] = 0
    assert prepare(reader, tmp_path / "whole", 6, seed) == (20, 0)  # nothing is left to do
    assert before == {name: os.stat(tmp_path / "whole" / name).st_mtime_ns for name in before}


def test_a_killed_run_goes_on_with_the_same_files(tmp_path: Path, seed: int) -> None:
    """kill -9 at a random moment, again and again."""
    path, _ = write_llava(tmp_path / "in", seed, 300)
    reader = Llava(path)
    prepare(reader, tmp_path / "whole", 10, seed)
    rng = random.Random(seed)
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        before = len(list((tmp_path / "pieces").glob("*.tar")))
        writer = fork.Process(target=prepare, args=(reader, tmp_path / "pieces", 10, seed))
        writer.start()
        while writer.is_alive() and len(list((tmp_path / "pieces").glob("*.tar"))) < before + rng.randint(1, 5):
            pass
        writer.kill()
        writer.join()
    prepare(reader, tmp_path / "pieces", 10, seed)
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole"), f"seed {seed}"


def test_broken_files_are_skipped_counted_and_named(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    for number in range(9):
        picture = picture_bytes(rng, "JPEG")
        (tmp_path / f"{number}.jpg").write_bytes(picture[:60] if number in (2, 5) else picture)
        (tmp_path / f"{number}.txt").write_text(f"Number {number}.")
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path), str(out), "--shard-size", "4", "--seed", str(seed)]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("7 samples, 2 skipped\n")
    for name in ("2.jpg", "5.jpg"):
        assert f"({name}): " in printed.err
    index = json.loads((out / "index.json").read_text())
    skipped = [line for shard in index["shards"].values() for line in shard["skipped"]]
    assert len(skipped) == 2
    reader = open_reader(out)
    assert isinstance(reader, Shards)
    answers = {reader[i].messages[1]["content"] for i in range(len(reader))}
    assert answers == {f"Number {number}." for number in (0, 1, 3, 4, 6, 7, 8)}, f"seed {seed}"


def test_what_cannot_be_prepared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = write_llava(tmp_path / "in", 0, 3)
    out = str(tmp_path / "out")
    assert main(["prepare", str(path), out]) == 0
    (tmp_path / "mute.jsonl").write_text('{"question": "?", "answer": "", "image": "gone.png"}\n' * 3)
    for arguments, message in (
        ([str(path), out, "--shard-size", "2"], "give these another folder"),
        ([str(path), out, "--shard-size", "0"], "the shard size is 0"),
        (
            [str(tmp_path / "mute.jsonl"), str(tmp_path / "new")],
            "none of the first 3 records can be read; ",
        ),
        ([str(tmp_path / "nothing"), out], "there is no such file or folder"),
        ([str(tmp_path / "out" / "index.json"), out], "record 0"),
        ([out], "the following arguments are required: OUT"),
    ):
        capsys.readouterr()
        assert main(["prepare", *arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("error: ")
        assert message in lines[-1]
    assert list((tmp_path / "new").iterdir()) == []


def test_an_index_that_lies_is_not_believed(tmp_path: Path, seed: int) -> None:
    path, _ = write_llava(tmp_path / "in", seed, 6)
    prepare(Llava(path), tmp_path / "out", 6, seed)
    other, _ = write_llava(tmp_path / "other", seed, 4)
    prepare(Llava(other), tmp_path / "fewer", 6, seed)
    (tmp_path / "fewer" / "shard-000000.tar").replace(tmp_path / "out" / "shard-000000.tar")
    shards = Shards([tmp_path / "out" / "shard-000000.tar"], "out")
    drawn = [item for item, _ in islice(shards.stream(seed), len(shards))]
    if len(shards) == 6:  # the files are of one size, and only the reader of one finds out
        assert {str(item).partition(": ")[2] for item in drawn} == {
            "the shard has 4 samples, index.json says 6: it is of others"
        }
    else:
        assert not any(isinstance(item, Fault) for item in drawn)


def test_real_photos_and_captions(data_dir: Path, tmp_path: Path) -> None:
    assert prepare(open_reader(data_dir / "photos"), tmp_path / "out", 50) == (125, 0)
    reader = open_reader(tmp_path / "out")
    assert isinstance(reader, Shards)
    told = json.loads((data_dir / "photos" / "captions.json").read_text())
    captions = sorted(caption.strip() for photo in told for caption in photo["captions"])
    assert sorted(reader[i].messages[1]["content"] for i in range(len(reader))) == captions
    picture = reader[0].messages[0]["content"][0]["image"].read()
    assert picture in {(data_dir / "photos" / photo["file"]).read_bytes() for photo in told}
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
