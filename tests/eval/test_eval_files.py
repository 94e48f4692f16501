import json
from pathlib import Path

import pytest

from eval import files
from eval.task import Sample

ORIGIN = "https://example.org/data"


def saved(tmp_path: Path, text: str | bytes, name: str = "file.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!DOCTYPE html><title>Sign in</title>", "is a web page.* https://example.org/data"),
        ("\n\n <HTML>", "is a web page"),
        ('{"a": ', "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' comes twice"),
        (b"\xff\xfe\x00", "not a text in UTF-8"),
    ],
)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        files.read_json(saved(tmp_path, text), ORIGIN)
    assert "file.json" in str(caught.value)


def test_a_missing_file_is_named_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json is missing; it comes from https://example\.org/data"):
        files.read_json(tmp_path / "gone.json", ORIGIN)


def test_every_complaint_names_its_place(tmp_path: Path) -> None:
    value = {"data": [{"id": 7, "answers": ["a", 3], "flag": 1, "n": True, "x": None}]}
    record = files.read_json(saved(tmp_path, json.dumps(value)), ORIGIN)["data"].list()[0]
    assert (record["id"].integer(), record["id"].name(), record["id"].number(), "id" in record) == (7, "7", 7.0, True)
    for ask, message in (
        (lambda: record["id"].text(), r"data\[0\]\.id: expected a text, got 7"),
        (lambda: record["answers"].texts(), r"data\[0\]\.answers\[1\]: expected a text, got 3"),
        (lambda: record["answers"].list(10), r"data\[0\]\.answers: expected 10 items, got 2"),
        (lambda: record["flag"].flag(), r"data\[0\]\.flag: expected true or false"),
        (lambda: record["n"].integer(), r"data\[0\]\.n: expected a whole number, got True"),
        (lambda: record["x"].name(), r"data\[0\]\.x: expected a text or a whole number"),
        (lambda: record["gone"], r"data\[0\]: there is no 'gone'"),
        (lambda: record["id"]["a"], r"data\[0\]\.id: expected an object"),
        (lambda: record["id"].items(), r"data\[0\]\.id: expected an object"),
        (lambda: record["id"].list(), r"data\[0\]\.id: expected a list"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    record = files.read_json(saved(tmp_path, '{"whole": "\\ud83d\\ude00", "half": "ab\\ud83d"}'), ORIGIN)
    assert record["whole"].text() == "\U0001f600"
    for ask in (record["half"].text, record["half"].name):
        with pytest.raises(ValueError, match=r"file.json.half: there is half a character \(a surrogate\) at 2"):
            ask()


def test_duplicates_are_refused_with_both_places(tmp_path: Path) -> None:
    rows = files.read_jsonl(saved(tmp_path, '{"id": 1}\n\n{"id": "1"}\n'), ORIGIN)
    with pytest.raises(ValueError, match=r"line 3: '1' was there before, at .*line 1"):
        files.unique(rows, lambda row: row["id"].name())


def test_csv_comes_by_column_with_line_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path, '# made\n# twice\nA1, 0.5, "x,y"\n\nB2, 1.0, "z"\n')
    rows = files.read_csv(path, ORIGIN, ("id", "start", "labels"), comment="#")
    assert [row["labels"].text() for row in rows] == ["x,y", "z"]
    assert rows[1].where.endswith("line 5")
    named = files.read_csv(saved(tmp_path, "id,label\n1,dog\n"), ORIGIN)
    assert named[0].value == {"id": "1", "label": "dog"}
    with pytest.raises(ValueError, match="line 2: there are 3 fields, expected 2"):
        files.read_csv(saved(tmp_path, "id,label\n1,dog,cat\n"), ORIGIN)
    with pytest.raises(ValueError, match="quoted field"):
        files.read_csv(saved(tmp_path, 'id,label\n1,"dog\n2,cat\n'), ORIGIN)
    with pytest.raises(ValueError, match="empty"):
        files.read_csv(saved(tmp_path, ""), ORIGIN)
    (row,) = files.read_csv(saved(tmp_path, "id,label\n1,dog\u2028cat\n"), ORIGIN)
    assert row["label"].text() == "dog\u2028cat"
    with pytest.raises(ValueError, match="is no CSV table: field larger than field limit"):
        files.read_csv(saved(tmp_path, f"id,label\n1,{'d' * 200_000}\n"), ORIGIN)


def test_missing_pictures_are_counted_and_the_first_named(tmp_path: Path) -> None:
    here = saved(tmp_path, b"", "here.png")
    samples = [
        Sample("a", "?", (here,)),
        Sample("b", "?", (tmp_path / "b.png",)),
        Sample("c", "?", (tmp_path / "b.png",)),
        Sample("d", "?", (lambda: None,), (tmp_path / "d.wav",)),
    ]
    with pytest.raises(ValueError, match=r"b\.png and 1 more missing; the first is asked about in 'b'"):
        files.check_media(samples)
    files.check_media(samples[:1])
    again = Sample("e", "?", (tmp_path / "e.png", tmp_path / "b.png"))
    for first, order in (("b.png", samples), ("d.wav", samples[::-1]), ("e.png", [again, *samples, again])):
        with pytest.raises(
            ValueError, match=rf"/{first} and \d more missing; the first is asked about in '{first[0]}'"
        ):
            files.check_media(order)
