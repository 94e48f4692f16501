"""Every reader gives the same conversations, and goes on exactly where it stopped."""

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader, IterableDataset

from tests.training.data.conversing import picture_bytes, plain, write_llava
from training.data import llava, tables
from training.data.conversations import Conversation, Fault, Indexed, Reader
from training.data.folders import PictureFolder
from training.data.llava import Llava
from training.data.prepare import prepare
from training.data.readers import open_reader
from training.data.records import messages_of
from training.data.shards import Shards
from training.data.tables import Parquet, Streamed


def as_lines(path: Path, records: list[dict[str, Any]]) -> Reader:
    lines = path.with_name("lines.jsonl")
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Llava(lines)


def as_shards(path: Path, records: list[dict[str, Any]]) -> Reader:
    """Written by webdataset itself."""
    from webdataset import ShardWriter

    folder = path.parent / "shards"
    folder.mkdir()
    with ShardWriter(str(folder / "part-%03d.tar"), maxcount=5, verbose=0) as writer:
        for number, record in enumerate(records):
            names = listed(record)
            media = {f"{i}.{name[-3:]}": (path.parent / name).read_bytes() for i, name in enumerate(names)}
            writer.write({"__key__": f"k{number:04}", "json": json.dumps(record).encode(), **media})
    return open_reader(folder)


def listed(record: dict[str, Any]) -> list[str]:
    names = record.get("image", record.get("audio", []))
    return [names] if isinstance(names, str) else names


def table(path: Path, records: list[dict[str, Any]]) -> Path:
    """Written by Hugging Face's datasets, with pictures as it holds them."""
    import datasets

    rows = [
        {
            "id": record["id"],
            "messages": [
                {"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
                for turn in record["conversations"]
            ],
            "images": [{"bytes": (path.parent / name).read_bytes(), "path": None} for name in listed(record)],
        }
        for record in records
    ]
    features = datasets.Features(
        id=datasets.Value("string"),
        messages=datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        images=datasets.List(datasets.Image(decode=False)),
    )
    folder = path.parent / "tables"
    folder.mkdir()
    for number, begin in enumerate(range(0, len(rows), 7)):
        part = datasets.Dataset.from_list(rows[begin : begin + 7], features=features)
        part.to_parquet(folder / f"{number}.parquet", batch_size=3)
    return folder


def as_parquet(path: Path, records: list[dict[str, Any]]) -> Reader:
    return open_reader(table(path, records))


def as_stream(path: Path, records: list[dict[str, Any]]) -> Reader:
    import datasets

    files = sorted(str(file) for file in table(path, records).glob("*.parquet"))
    return Streamed(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True), "stream")


def as_json(path: Path, records: list[dict[str, Any]]) -> Reader:
    return open_reader(path)


READERS = [as_json, as_lines, as_shards, as_parquet, as_stream]
Opener = Callable[[Path, list[dict[str, Any]]], Reader]


@pytest.mark.parametrize("opened", READERS)
def test_every_layout_gives_the_same_conversations_and_goes_on_from_any_position(
    opened: Opener, tmp_path: Path, seed: int
) -> None:
    path, records = write_llava(tmp_path, seed)
    reader = opened(path, records)
    expected = Llava(path)
    wanted = sorted(repr(plain(expected[i])) for i in range(len(records)))
    drawn = list(islice(reader.stream(seed), 3 * len(records)))
    for epoch in range(3):
        found = [repr(plain(item)) for item, _ in drawn[epoch * len(records) : (epoch + 1) * len(records)]]
        assert sorted(found) == wanted, f"seed {seed}"
    if isinstance(reader, Indexed):
        assert [plain(reader[i]) for i in range(len(reader))] == [plain(expected[i]) for i in range(len(records))]
    for at in random.Random(seed).sample(range(2 * len(records)), 5):
        position = json.loads(json.dumps(drawn[at][1]))
        again = list(islice(reader.stream(seed, position), 9))
        assert [plain(item) for item, _ in again] == [plain(item) for item, _ in drawn[at + 1 : at + 10]], (
            f"seed {seed}, position {at}"
        )


def test_records_are_found_in_a_file_wherever_it_is_cut_into_blocks(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, records = write_llava(tmp_path, seed)
    monkeypatch.setattr(llava, "BLOCK", random.Random(seed).randint(1, 40))
    text = path.read_bytes()
    for start in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(start + text)
        spans = list(llava.record_spans(path))
        assert [json.loads(path.read_bytes()[a:b]) for a, b in spans] == records, f"seed {seed}"


GOOD = {
    "id": "a",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}],
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([GOOD, GOOD])[:-9], "record 1: is no JSON"),
        (json.dumps([GOOD])[:-1], "record 1: the list is cut short"),
        (json.dumps([GOOD, 5]), "record 1: found '5]'"),
        (json.dumps({"annotations": []}), "record 0: there are no turns"),
        ("", "has no records"),
        ("\xff", "record 0"),
        (
            json.dumps([{**GOOD, "image": ["a.png", "b.png"]}]),
            "record 0: there are 1 <image> markers for 2 image files",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name_and_record(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        Llava(path)
    assert "wrong.json" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "there are 1 <image> markers for 0 image files"),
        ({"conversations": [{"from": "human"}]}, "turn 0 is"),
        ({"conversations": [{"from": "nobody", "value": "?"}]}, "turn 0 is from 'nobody'"),
        ({"conversations": "?"}, "conversations is '?', expected a list"),
        ({"image": 5}, "a picture or a sound is given as 5"),
    ],
)
def test_a_bad_record_among_good_ones_is_named_by_file_and_number(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, GOOD, GOOD | change]))
    found = [item for item, _ in islice(Llava(path).stream(0), 3)]
    (fault,) = (item for item in found if isinstance(item, Fault))
    assert message in fault.reason
    assert "data.json, record 2" in str(fault)


def parts(record: dict[str, Any]) -> list[Any]:
    content = messages_of(record, lambda entry: entry)[0]["content"]
    return [content] if isinstance(content, str) else [part[part["type"]] for part in content]


def said(text: str, **media: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "It."}], **media}


def test_markers_say_where_pictures_and_sounds_stand() -> None:
    assert parts(said("What?")) == ["What?"]
    assert parts(said("What?\n<image>", image="a")) == ["a", "What?"]
    assert parts(said("<image>1 <image>2", image=["a", "b"])) == ["a", "1", "b", "2"]
    assert parts(said("See <image> and hear <audio>", image="a", audio="b")) == ["See", "a", "and hear", "b"]
    assert parts({"texts": [{"user": "What?", "assistant": "It."}], "images": ["a", "b"]}) == ["a", "b", "What?"]
    assert parts({"caption": "A dog.", "image": "a"}) == ["a", "Describe the picture."]
    assert parts({"caption": "A bark.", "audio": "a"}) == ["a", "Describe the sound."]
    chat = {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        "image": "a",
    }
    assert parts(chat) == ["a", "What?"]


def test_a_folder_of_described_pictures(tmp_path: Path) -> None:
    rng = random.Random(0)
    for name in ("a.png", "b/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture_bytes(rng))
        (tmp_path / name).with_suffix(".txt").write_text(f"This is {name}.\n")
    (tmp_path / "untold.png").write_bytes(picture_bytes(rng))
    reader = open_reader(tmp_path)
    assert isinstance(reader, PictureFolder)
    assert [reader[i].messages[1]["content"] for i in range(len(reader))] == ["This is a.png.", "This is b/c.jpg."]
    (tmp_path / "captions.json").write_text(json.dumps([{"file": "untold.png", "captions": ["One.", "Two."]}]))
    told = open_reader(tmp_path)
    assert [told[i].messages[1]["content"] for i in range(len(told))] == ["One.", "Two."]
    for wrong in ("[{}]", '[{"file": "untold.png"}]', '[{"file": "untold.png", "caption": null}]', '{"a.png": [1]}'):
        (tmp_path / "captions.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"captions\.json is no table of captions"):
            open_reader(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no picture or sound with a caption .*captions\.json.*no \.tar"):
        open_reader(tmp_path / "empty")


def test_parts_are_read_whoever_says_them() -> None:
    """As chat data on the hub has them, with every field in every part."""
    said = [{"type": "text", "text": text, "image": None} for text in ("One", "two")]
    turns = [{"role": role, "content": said} for role in ("system", "user", "assistant")]
    assert [message["content"] for message in messages_of({"messages": turns}, lambda entry: entry)][::2] == [
        "One\ntwo"
    ] * 2
    turns[2] = {"role": "assistant", "content": [{"type": "image"}]}
    with pytest.raises(ValueError, match="expected a text"):
        messages_of({"messages": turns}, lambda entry: entry)


def test_a_shard_with_metadata_and_a_caption_is_read(tmp_path: Path) -> None:
    """As img2dataset writes it: the .json tells where a picture is from, unless it holds words."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key, record in (("1", {"url": "?"}), ("2", {"caption": "Red."})):
            for suffix, data in (("json", json.dumps(record).encode()), ("txt", b"Blue.\n"), ("png", b"?")):
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    reader = open_reader(tmp_path / "a.tar")
    assert isinstance(reader, Shards)
    assert [reader[i].messages[1]["content"] for i in range(2)] == ["Blue.", "Red."]
    assert [part["type"] for part in reader[0].messages[0]["content"]] == ["image", "text"]


def test_a_table_that_breaks_is_a_fault_and_one_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = pyarrow.table({"question": [f"What is {i}?" for i in range(2000)], "answer": ["Red."] * 2000})
    parquet.write_table(rows, path, compression="zstd", use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    drawn, _ = next(Parquet([path], "table").stream(0))
    assert isinstance(drawn, Fault)
    assert "row group 0 cannot be read" in drawn.reason
    parquet.write_table(pyarrow.table({"label": ["a"], "image": [b"?"]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet has the columns \['label', 'image'\], expected conversations"):
        open_reader(path)


def test_a_shard_that_goes_away_is_a_fault(tmp_path: Path, seed: int) -> None:
    prepare(Llava(write_llava(tmp_path / "in", seed, 8)[0]), tmp_path / "out")
    reader = open_reader(tmp_path / "out")
    assert isinstance(reader, Shards)
    assert not any(isinstance(reader.draw(0, item), Fault) for item in range(8))
    (tmp_path / "out" / "shard-000000.tar").unlink()
    assert all("cannot be read: No such file" in str(reader.draw(0, item)) for item in range(8)), f"seed {seed}"


def test_many_pictures_of_a_sample_keep_their_order(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"{i}.png" for i in range(12)]
    for name in names:
        (tmp_path / name).write_bytes(picture_bytes(rng))
    record = {"id": "many", **said("<image>" * 12 + "What?", image=names)}
    (tmp_path / "many.json").write_text(json.dumps([record]))
    reader = as_shards(tmp_path / "many.json", [record])
    assert isinstance(reader, Shards)
    assert plain(reader[0]) == plain(Llava(tmp_path / "many.json")[0]), f"seed {seed}"


def test_a_position_in_other_data_is_refused(tmp_path: Path, seed: int) -> None:
    path, records = write_llava(tmp_path, seed, 4)
    _, position = next(Llava(path).stream(seed))
    path.write_text(json.dumps(records[:3]))
    with pytest.raises(ValueError, match="has 3 records, the position is one among 4"):
        next(Llava(path).stream(seed, position))


def test_a_data_set_on_the_hub_is_read_as_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows() -> Iterator[dict[str, str]]:
        yield from ({"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(3))

    asked = []

    def load(name: str, split: str, streaming: bool) -> datasets.IterableDataset:
        asked.append((name, split, streaming))
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("hf:owner/repo", "hf:owner/repo/valid"):
        drawn = [item for item, _ in islice(open_reader(name).stream(0), 4)]
        assert [plain(item)[0][1] for item in drawn] == ["What is 0?", "What is 1?", "What is 2?", "What is 0?"]
    assert asked == [("owner/repo", "train", True), ("owner/repo", "valid", True)]

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("there is none\nof that name")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match="hf:owner/repo cannot be opened: there is none of that name"):
        open_reader("hf:owner/repo")


class Worked(IterableDataset[str]):
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __iter__(self) -> Iterator[str]:
        yield repr([plain(item) for item, _ in islice(self.reader.stream(0), 20)])


@pytest.mark.slow
def test_every_worker_of_a_loader_follows_the_whole_stream(tmp_path: Path, seed: int) -> None:
    """`datasets` would give each worker its share of the rows."""
    path, records = write_llava(tmp_path, seed)
    stream = Worked(as_stream(path, records))
    (expected,) = stream
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == [expected, expected], f"seed {seed}"


def test_a_shard_that_is_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is no whole tar file"):
        Shards([path], "shards")
    with pytest.raises(ValueError, match=r"b\.tar: there is no such file"):
        Shards([tmp_path / "b.tar"], "shards")


def test_words_are_read_without_the_bytes_of_pictures(tmp_path: Path, seed: int) -> None:
    """Every rank follows the stream, so that must not cost more than its words."""
    path, records = write_llava(tmp_path, seed)
    reader = as_parquet(path, records)
    assert isinstance(reader, Parquet)
    light = [row for block in range(len(reader.blocks)) for row in reader.rows(block)]
    assert all("bytes" not in image for row in light for image in row["images"])
    assert sum(len(row["images"]) for row in light) == sum(len(listed(record)) for record in records)


def test_a_row_group_is_read_once_for_its_pictures_and_few_large_ones_are_kept(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs take the pictures of a window in any order, and it may reach over many row groups where they are small."""
    groups, rows = 30, 4
    path = tmp_path / "a.parquet"
    numbers = [f"{number}".encode() for number in range(groups * rows)]
    column = pyarrow.array([[{"bytes": number, "path": None}] for number in numbers])
    asked = pyarrow.array(["What is this?"] * len(numbers))
    table = pyarrow.table({"question": asked, "answer": asked, "images": column})
    parquet.write_table(table, path, row_group_size=rows)
    read: list[int] = []
    reading = Parquet._read

    def counted(self: Parquet, block: int, column: str | None = None) -> list[dict[str, Any]]:
        read.extend([block] if column is not None else [])
        return reading(self, block, column)

    monkeypatch.setattr(Parquet, "_read", counted)

    def look(reader: Parquet, number: int) -> None:
        picture = reader[number].messages[0]["content"][0]["image"]
        assert picture.read() == numbers[number], f"seed {seed}"

    reader = Parquet([path], "table")
    for number in random.Random(seed).sample(range(len(numbers)), len(numbers)):
        look(reader, number)
    assert sorted(read) == list(range(groups)), f"seed {seed}"

    monkeypatch.setattr(tables, "ROOM", sum(map(len, numbers[-5 * rows :])))
    reader = Parquet([path], "table")
    for number in range(0, len(numbers), rows):
        look(reader, number)
    read.clear()
    for number in range(len(numbers) - 5 * rows, len(numbers), rows):
        look(reader, number)
    assert not read, "as many as there is room for are kept"
    look(reader, len(numbers) - 6 * rows)
    assert read == [groups - 6]

    monkeypatch.setattr(tables, "ROOM", 1)  # as if every row group were a large one
    reader = Parquet([path], "table")
    read.clear()
    for number in range(0, len(numbers), rows):
        look(reader, number)
    look(reader, len(numbers) - rows - 1)  # the one before the last is still there
    assert len(read) == groups
    look(reader, 0)
    assert read[groups:] == [0], "the first is kept after many others"


def test_real_conversations(data_dir: Path) -> None:
    reader = open_reader(data_dir / "llava_format" / "dummy.json")
    assert isinstance(reader, Indexed)
    assert len(reader) == 1000
    official = json.loads((data_dir / "llava_format" / "dummy.json").read_text())
    for number in (0, 1, 500, 999):
        conversation = reader[number]
        assert isinstance(conversation, Conversation)
        picture, question = conversation.messages[0]["content"]
        Image.open(io.BytesIO(Path(picture["image"]).read_bytes())).verify()
        turns = official[number]["conversations"]
        assert "<image>\n" + question["text"] == turns[0]["value"].strip()
        assert conversation.messages[1]["content"] == turns[1]["value"]
        assert official[number]["id"] in conversation.id
