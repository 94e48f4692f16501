"""`ask --batch`: a file of questions in, a file of answers out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from app.batch import answer_file
from app.cli import main
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.ears import RATE, noise


@pytest.fixture(scope="module")
def pipeline(tiny_model: Any) -> Pipeline:
    return Pipeline(tiny_model, "tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (40, 40), color).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def _answers(pipeline: Pipeline, folder: Path, *lines: str | dict[str, Any]) -> list[dict[str, Any]]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "in.jsonl").write_text(text + "\n", encoding="utf-8")
    answer_file(pipeline, folder / "in.jsonl", folder / "out.jsonl", Sampling())
    return [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]


def test_lines_keep_their_order_and_fields(pipeline: Pipeline, folder: Path) -> None:
    lines = [
        {"question": "What is it?", "image": "red.png", "id": 7, "label": "röd"},
        {"question": "And now?", "images": ["red.png", "blue.png"]},
        {"question": "Hello?", "image": None, "answer": "an old one"},
        {"question": "Hello?", "question_id": 1, "image": "red.png", "image_id": 2, "source": "blue.png"},
        {"question": "Hello?", "images": ["red.png"], "image_id": 2, "audio_id": 3},
        {"question": "Hello?", "category": "red", "source": "none.png", "number": 1, "list": [], "object": {}},
    ]
    results = _answers(pipeline, folder, *lines)
    for line, result in zip(lines, results, strict=True):
        assert result == {**line, "answer": result["answer"]}
        assert "error" not in result
        images = line.get("images") or ([line["image"]] if line.get("image") else [])
        expected = pipeline.ask(line["question"], [folder / image for image in images])
        assert result["answer"] == expected.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("\x00", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[]", "line 2 is not an object"),
        ({"image": "red.png"}, "question is None"),
        ({"question": "", "image": "red.png"}, "the question is empty"),
        (
            {"question": "What?", "imgae": "red.png"},
            "'imgae' is not read, did you mean 'image'? (known: question, image,",
        ),
        ({"question": "What?", "Audio": ["dog.wav"], "id": 1}, "'Audio' is not read, did you mean 'audio'?"),
        (
            {"question": "What?", "image": "red.png", "imges": ["blue.png"]},
            "'imges' is not read, did you mean 'images'?",
        ),
        ({"question": "What?", "picture": "red.png"}, "'picture' is not read (known: question, image, images, audio)"),
        ({"qestion": "What?", "image": "red.png"}, "'qestion' is not read, did you mean 'question'?"),
        ({"question": "What?", "image": "nowhere.png"}, "nowhere.png: there is no such file"),
        ({"question": "What?", "image": "text.png"}, "is not a picture"),
        ({"question": "What?", "image": "red.png", "images": ["red.png"]}, "not both"),
        ({"question": "What?", "images": "red.png"}, "expected a list of paths"),
        ({"question": "What?", "image": ["red.png"]}, "expected a path"),
        ({"question": "What?", "audio": [1]}, "expected a path or a list of paths"),
        ({"question": "What?", "audio": "dog.wav"}, "no sound encoder"),
    ],
)
def test_a_broken_line_says_so_and_the_others_are_answered(
    pipeline: Pipeline, folder: Path, line: str | dict[str, Any], said: str
) -> None:
    good = {"question": "What?", "image": "red.png"}
    results = _answers(pipeline, folder, good, line, good)
    assert ["error" in result for result in results] == [False, True, False]
    assert said in results[1]["error"]
    assert "answer" not in results[1]
    assert results[0] == results[2]


def test_a_picture_is_read_once_for_lines_in_a_row(
    pipeline: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = pipeline.model.encode
    monkeypatch.setattr(pipeline.model, "encode", lambda pixels, tiles: encoded.append(len(pixels)) or encode(pixels))
    red, blue = ({"question": "What?", "image": f"{name}.png"} for name in ("red", "blue"))
    results = _answers(pipeline, folder, red, red, red, blue, red)
    assert encoded == [1, 1, 1]
    assert results[0] == results[2] == results[4]


def test_sounds_come_one_or_several(listening_model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Pipeline(listening_model, "listener")
    for seed, name in enumerate(("dog.wav", "cat.wav")):
        soundfile.write(folder / name, noise(1.0, seed).numpy(), RATE, subtype="FLOAT")
    heard: list[int] = []
    read = listening_model.sound.read
    monkeypatch.setattr(listening_model.sound, "read", lambda *windows: heard.append(1) or read(*windows))
    lines: list[dict[str, Any]] = [
        {"question": "What?", "audio": "dog.wav"},
        {"question": "And?", "audio": ["dog.wav"]},
        {"question": "What?", "audio": ["dog.wav", "cat.wav"]},
        {"question": "What?", "image": "red.png", "audio": "cat.wav"},
        {"question": "What?", "audio": "nowhere.wav"},
        {"question": "What?", "audio": "red.png"},
    ]
    *results, missing, wrong = _answers(listener, folder, *lines)
    assert len(heard) == 4  # the second line's sound is that of the first
    for line, result in zip(lines, results, strict=False):
        audio = [line["audio"]] if isinstance(line["audio"], str) else line["audio"]
        images = [folder / line["image"]] if "image" in line else []
        assert result["answer"] == listener.ask(line["question"], images, [folder / path for path in audio]).text
    assert "nowhere.wav: there is no such file" in missing["error"]
    assert "red.png is not a sound" in wrong["error"]


def test_an_interrupted_batch_leaves_no_output_but_what_was_answered(
    pipeline: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out.jsonl").write_text("of an earlier run\n")
    ask, calls = pipeline.ask, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ask(*arguments, **options)

    monkeypatch.setattr(pipeline, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _answers(pipeline, folder, *[{"question": "What?"}] * 3)
    assert (folder / "out.jsonl").read_text() == "of an earlier run\n"
    assert len((folder / "out.jsonl.partial").read_text().splitlines()) == 1


def test_the_command_fails_when_a_line_failed(
    folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = folder / "questions"
    questions.mkdir()
    shutil.move(folder / "red.png", questions)
    (questions / "in.jsonl").write_text('{"question": "What?", "image": "red.png"}\n\n')
    command = ["ask", "--batch", str(questions / "in.jsonl"), "--out", str(folder / "out.jsonl")]
    assert main([*command, "--model", str(tiny_checkpoint)]) == 0
    (questions / "in.jsonl").write_text('{"question": "What?", "image": "red.png"}\n{\n')
    assert main([*command, "--model", str(tiny_checkpoint)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    assert "1 failed" in captured.err
    assert not list(folder.glob("*.partial"))
