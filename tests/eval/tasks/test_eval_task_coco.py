"""COCO captions from their official files: twenty pictures, by Karpathy's split and by the official annotations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.metrics import captions
from eval.tasks.coco import Karpathy, Test2014, Val2014
from tests.eval import official


def file_name(number: int, subset: str = "val2014") -> str:
    return f"COCO_{subset}_{number:012}.jpg"


def sentences(number: int) -> list[str]:
    return [f"Picture {number} told in way {way}. " for way in range(5)]


def write_karpathy(folder: Path, **changes: Any) -> None:
    """Every second picture is of the test split."""
    images = [
        {
            "filepath": "val2014",
            "filename": file_name(n),
            "cocoid": n,
            "imgid": n,
            "split": "val" if n % 2 else "test",
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": 5 * n} for text in sentences(n)],
            **(changes if n == 6 else {}),
        }
        for n in range(40)
    ]
    official.write(folder / "dataset_coco.json", {"dataset": "coco", "images": images})


def write_official(folder: Path) -> None:
    images = [{"id": n, "file_name": file_name(n), "height": 8, "width": 8} for n in range(20)]
    annotations = [
        {"id": 5 * n + way, "image_id": n, "caption": text} for n in range(20) for way, text in enumerate(sentences(n))
    ]
    official.write(folder / "annotations/captions_val2014.json", {"images": images, "annotations": annotations[::-1]})
    tests = [{"id": 100 + n, "file_name": file_name(100 + n, "test2014")} for n in range(20)]
    official.write(folder / "annotations/image_info_test2014.json", {"images": tests})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_karpathy(tmp_path)
    write_official(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Sequence[str]]]:
    """The references that the captions would be scored against, by call; the scores themselves are one per id."""
    seen: list[Mapping[str, Sequence[str]]] = []

    def evaluate(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> captions.CaptionScores:
        seen.append(references)
        each = {id: float(int(id)) for id in predictions}
        mean = sum(each.values()) / len(each)
        return captions.CaptionScores({"CIDEr-D": mean, "BLEU-4": 5.0}, each, {"SPICE": "no models"})

    monkeypatch.setattr(captions, "evaluate", evaluate)
    return seen


def test_samples_of_each_split(data: Path) -> None:
    sample = official.check_samples(Karpathy(), data, 20)["6"]
    assert sample.question == "Provide a one-sentence caption for the provided image."
    assert sample.images == (data / "val2014" / file_name(6),)
    assert sample.expected == sentences(6)[0]
    assert set(Val2014().pictures(data)["6"].references) == set(sentences(6))
    test = official.check_samples(Test2014(), data, 20)["106"]
    assert test.images == (data / "test2014" / file_name(106, "test2014"),)
    assert not Test2014().scored_here


def test_captions_meet_their_own_references(data: Path, asked: list[Mapping[str, Sequence[str]]]) -> None:
    predictions = {str(n): f"caption {n}" for n in range(0, 40, 2)}
    official.check_scores(Karpathy(), data, predictions, {"CIDEr-D": 19, "BLEU-4": 5})
    assert asked[0] == {str(n): tuple(sentences(n)) for n in range(0, 40, 2)}
    scores = Karpathy().score(data, predictions)
    assert scores.corpus["CIDEr-D"](["2", "4", "4", "6"]) == 4
    assert scores.notes == ("SPICE is left out: no models.",)


def test_part_of_the_pictures_is_marked_as_not_comparable(data: Path, asked: list[Mapping[str, Sequence[str]]]) -> None:
    notes = Val2014().score(data, {"3": "a", "5": "b"}).notes
    assert notes[-1].startswith("2 of 20 were captioned")
    assert set(asked[0]) == {"3", "5"}


def test_results_files_are_those_of_codalab(data: Path) -> None:
    assert Karpathy().submission(data, {"6": "a cat"}) is None  # the server wants all of val2014
    for task, subset in ((Val2014(), "val2014"), (Test2014(), "test2014")):
        name, text = task.submission(data, {"3": "a cat"})
        assert name == f"captions_{subset}_mmrwkv7_results.json"
        assert json.loads(text) == [{"image_id": 3, "caption": "a cat"}]


def test_bad_files_are_refused(data: Path, asked: list[Mapping[str, Sequence[str]]]) -> None:
    for changes, message in (
        ({"cocoid": 4}, r"dataset_coco\.json\.images\[6\]: '4' was there before, at .*images\[4\]"),
        ({"sentences": [{"raw": 3}]}, r"images\[6\]\.sentences\[0\]\.raw: expected a text, got 3"),
        ({"split": None}, r"images\[6\]\.split: expected a text, got None"),
    ):
        write_karpathy(data, **changes)
        official.check_record_refusal(Karpathy(), data, message)
    official.check_refusals(Karpathy(), data, "dataset_coco.json")
    official.check_refusals(Val2014(), data, "annotations/captions_val2014.json")
    stray = {"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 2, "caption": "a"}]}
    official.write(data / "annotations/captions_val2014.json", stray)
    official.check_record_refusal(Val2014(), data, r"annotations\[0\]: a caption of 2, which is not among the images")
