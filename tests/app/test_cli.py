"""The command line, run in this process: what it prints, what it refuses, and how it ends."""

import errno
import json
import math
import socket
import struct
import subprocess
import sys
import wave
import zlib
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
from PIL import Image

from app.asking import hint_at_media
from app.cli import main
from app.media import question_and_media
from app.talk import Point, Talk
from mm_rwkv7 import checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.synthetic import soundscapes
from tests.ears import LABELS, without_words

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.ogg"
    scape = soundscapes.sample(1)
    soundfile.write(path, scape.waveform, scape.rate)
    return path


@pytest.fixture
def loads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a model is loaded for bad input")

    monkeypatch.setattr("mm_rwkv7.pipeline.Pipeline.from_pretrained", refuse)


Lines = tuple[int, list[str], list[str]]
Run = Callable[..., Lines]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Lines:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def _truncated_jpeg() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "JPEG")
    return buffer.getvalue()[:-200]


def _gif_with_a_broken_frame() -> bytes:
    buffer = BytesIO()
    frames = [Image.effect_noise((64, 64), 20 * step) for step in (1, 2, 3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()[:-600]


def _huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def _wave(samples: int = 100) -> bytes:
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * samples))
    return buffer.getvalue()


def _no_number() -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, np.array([0.5, np.nan]), 8000, "FLOAT", format="WAV")
    return buffer.getvalue()


BAD_PICTURES = {
    "cut.jpg": (_truncated_jpeg, "broken or cut short"),
    "huge.png": (_huge_png, "too large"),
    "frames.gif": (_gif_with_a_broken_frame, "frame"),
    "empty.png": (bytes, "is empty"),
}
BAD_SOUNDS = {
    "cut.wav": (lambda: _wave()[:30], "broken or cut short"),
    "none.wav": (lambda: _wave(0), "no samples"),
    "no-number.wav": (_no_number, "no number at 0.000 s"),
    "head.mp3": (lambda: b"ID3\4" + bytes(60), "is not a sound"),
}
BAD_FILES = {
    **{("ask", name): bad for name, bad in {**BAD_PICTURES, **BAD_SOUNDS}.items()},
    **{("caption", name): bad for name, bad in BAD_PICTURES.items()},
    **{("tag", name): bad for name, bad in BAD_SOUNDS.items()},
    ("chat", "cut.wav"): BAD_SOUNDS["cut.wav"],
    ("ask", "text.png"): (lambda: b"this is a text\n", "is neither a picture nor a sound"),
    ("caption", "text.png"): (lambda: b"this is a text\n", "is not a picture"),
    ("caption", "sound.png"): (_wave, "is a sound, expected a picture"),
    ("tag", "text.wav"): (lambda: b"this is a text\n", "is not a sound"),
    ("tag", "empty.wav"): (bytes, "is empty"),
}


@pytest.mark.usefixtures("loads_no_model")
@pytest.mark.parametrize(("command", "name"), BAD_FILES)
def test_a_bad_file_is_one_line_before_a_model_is_loaded(tmp_path: Path, run: Run, command: str, name: str) -> None:
    content, said = BAD_FILES[command, name]
    (tmp_path / name).write_bytes(content())
    question = ["What is this?"] if command == "ask" else []
    code, out, err = run(command, tmp_path / name, *question)
    assert (code, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("error: ")
    assert name in err[0]
    assert said in err[0]


@pytest.mark.usefixtures("loads_no_model")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "there is no question"),
        (["ask", "  \n"], "the question is empty"),
        (["ask", "SCENE", ""], "the question is empty"),
        (["ask", "SCENE"], "the question is missing"),
        (["ask", "SCENE", "SCENE"], "the question is missing"),
        (["ask", "What is it?", "SCENE"], "the question comes last; expected: mm-rwkv7 ask "),
        (["ask", "mistyped.png", "SCENE"], "the question is missing"),
        (["ask", "SCENE", "What is it?", "SCENE"], "scene.png 'What is it?'"),
        (["ask", "nowhere.png", "What?"], "nowhere.png: there is no such file"),
        (["ask", ".", "What?"], "is a folder"),
        (["ask", "SCENE", "What?", "--temperature", "-1"], "temperature is -1"),
        (["ask", "SCENE", "What?", "--top-k", "many"], "--top-k"),
        (["ask", "SCENE", "What?", "--device", "tpu"], "'tpu'"),
        (["ask", "SCENE", "What?", "--dtype", "int3"], "'int3'"),
        (["ask", "What?", "--colour"], "No such option"),
        (["ask", "--batch", "nowhere.jsonl", "--out", "x.jsonl"], "nowhere.jsonl: there is no such file"),
        (["ask", "--batch", ".", "--out", "x.jsonl"], ". is a folder"),
        (["ask", "--batch", "nowhere.jsonl"], "go together"),
        (["ask", "--batch", "SCENE", "--out", "nowhere/x.jsonl"], "nowhere: there is no such folder"),
        pytest.param(
            ["ask", "--batch", "SCENE", "--out", "/proc/x.jsonl"],
            "cannot write to /proc",
            marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc"),
        ),
        (["ask", "--batch", "SCENE", "--out", "x.jsonl", "What?"], "brings its own questions"),
        (["ask", "--document", "nowhere.txt", "What?"], "nowhere.txt cannot be read"),
        (["chat", "--document", "."], ". cannot be read: Is a directory"),
        (["embed", "red", ""], "a text is empty"),
        (["caption"], "IMAGE"),
        (["tag", "nowhere.wav"], "nowhere.wav: there is no such file"),
        (["tag", "."], "is a folder"),
        (["tag", "nowhere.wav", "--top", "0"], "--top"),
        (["caption"], "(mm-rwkv7 caption --help says more)"),
        (["sing"], "No such command"),
        ([], "Missing command"),
    ],
)
def test_bad_usage_is_one_line(run: Run, scene: Path, arguments: list[str], said: str) -> None:
    code, out, err = run(*(scene if argument == "SCENE" else argument for argument in arguments))
    assert (code, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("error: ")
    assert said in err[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "not known"), "there: not known; --host takes an address of this machine"),
        (OSError(errno.EADDRNOTAVAIL, "not here"), "there:8000: not here; --host takes another"),
        (OSError(errno.EADDRINUSE, "in use"), "there:8000: in use; --port takes another"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(socket, "create_server", refuse)
    for command in ("serve", "app"):
        code, out, err = run(command, "--host", "there", "--port", "8000", "--insecure")
        assert (code, out, err) == (2, [], [f"error: cannot listen on {said}"])


@pytest.mark.parametrize("command", [[], ["ask"], ["serve"], ["train"], ["eval"]])
def test_help_has_a_short_name(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    told = []
    for name in ("-h", "--help"):
        code: object
        try:
            code = main([*command, name])
        except SystemExit as end:  # argparse, of `train` and `eval`
            code = end.code
        assert not code
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "--help" in told[0]


def test_a_missing_model_is_bad_input(run: Run, scene: Path) -> None:
    code, out, err = run("ask", scene, "What?", "--model", "nowhere")
    assert (code, out, len(err)) == (2, [], 1)
    assert "'nowhere' does not exist" in err[0]


def test_another_failure_is_one_line_and_debug_shows_where(
    run: Run, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("mm_rwkv7.pipeline.Pipeline.from_pretrained", fail)
    assert run("ask", scene, "What?") == (1, [], ["error: RuntimeError: out of memory (--debug shows where)"])
    code, _, err = run("ask", scene, "What?", "--debug")
    assert code == 1
    assert err[0].startswith("Traceback")


def test_an_interrupt_ends_with_130(run: Run, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mm_rwkv7.pipeline.Pipeline.from_pretrained", interrupt)
    assert run("ask", scene, "What?") == (130, [], [])


def test_ask_prints_the_answer(run: Run, scene: Path, tiny_checkpoint: Path) -> None:
    code, out, err = run("ask", scene, "What is this?", "--model", tiny_checkpoint)
    assert (code, len(out), err) == (0, 1, [])
    assert out[0]


def test_ask_json_describes_the_same_answer(run: Run, scene: Path, tiny_checkpoint: Path) -> None:
    _, plain, _ = run("ask", scene, "What is this?", "--model", tiny_checkpoint)
    code, out, _ = run("ask", scene, "What is this?", "--json", "--model", tiny_checkpoint)
    assert (code, len(out)) == (0, 1)
    answer = json.loads(out[0])
    assert list(answer) == ["answer", "finish_reason", "usage", "timings", "model"]
    assert answer["answer"] == plain[0].strip()
    assert answer["finish_reason"] == "length"
    assert answer["model"] == str(tiny_checkpoint)
    assert set(answer["usage"]) == {"prompt_tokens", "media_tokens", "completion_tokens"}
    assert answer["usage"]["media_tokens"] > 0
    assert answer["usage"]["completion_tokens"] == 8
    timings = {"load_s", "encode_s", "prefill_s", "first_token_s", "decode_tokens_per_s"}
    assert set(answer["timings"]) == timings
    assert all(value >= 0 for value in answer["timings"].values())


def test_ask_takes_text_alone_and_bounds(run: Run, tiny_checkpoint: Path) -> None:
    options = ("--max-new-tokens", 3, "--temperature", 1, "--seed", 5, "--json", "--model", tiny_checkpoint)
    answers = [json.loads(run("ask", "What is this?", *options)[1][0]) for _ in range(2)]
    assert answers[0]["answer"] == answers[1]["answer"]
    assert answers[0]["usage"]["completion_tokens"] == 3
    assert answers[0]["usage"]["media_tokens"] == 0


def test_a_question_about_nothing_is_answered_with_a_hint(
    run: Run, scene: Path, sound: Path, listening_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--model", listening_checkpoint)
    code, out, err = run("ask", "What is this?", *options)
    assert (code, len(out)) == (0, 1)
    assert err == [
        f"hint: {listening_checkpoint} knows pictures and sounds only, and what it says without one means nothing; "
        "a picture or a sound goes before the question"
    ]
    _, (line,), told = run("ask", "What is this?", "--json", *options)
    assert (json.loads(line)["answer"], told) == (out[0].strip(), err)
    for medium in (scene, sound):
        assert run("ask", medium, "What is this?", *options)[2] == []
    for media, expected in (([], [*err, "> > "]), ([scene], ["> > "])):
        monkeypatch.setattr(sys, "stdin", StringIO("What is this?\n\n"))
        assert run("chat", *media, *options)[2] == expected


@pytest.mark.parametrize(
    ("vocabulary", "tower", "sound", "said"),
    [
        ((0, 1), "a tower", None, "hint: nano knows pictures only, "),
        ((0, 1), None, "an ear", "hint: nano knows sounds only, "),
        ((0, 1), None, None, ""),
        (None, "a tower", "an ear", ""),
    ],
)
def test_the_hint_is_for_models_that_know_nothing_else(
    vocabulary: object, tower: object, sound: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SimpleNamespace(vocabulary=vocabulary, tower=tower, sound=sound)
    pipeline: Any = SimpleNamespace(name="nano", model=SimpleNamespace(config=config))
    hint_at_media(pipeline)
    assert capsys.readouterr().err[: len(said) or None] == said


def test_caption_is_a_line_for_each_picture(run: Run, scene: Path, tiny_checkpoint: Path) -> None:
    code, out, _ = run("caption", scene, scene, "--json", "--model", tiny_checkpoint)
    assert code == 0
    captions = [json.loads(line) for line in out]
    assert [set(caption) for caption in captions] == [{"image", "caption"}] * 2
    assert captions[0] == captions[1]
    assert captions[0]["image"] == str(scene)
    assert run("caption", scene, "--model", tiny_checkpoint)[1] == [captions[0]["caption"]]


@pytest.mark.parametrize("command", ["caption", "tag"])
def test_a_bad_file_among_others_is_told_and_the_others_are_answered(
    run: Run, scene: Path, sound: Path, listening_checkpoint: Path, command: str
) -> None:
    good, other = (scene, sound) if command == "caption" else (sound, scene)
    _, alone, _ = run(command, good, good, "--model", listening_checkpoint)
    code, out, err = run(command, good, "nowhere.png", other, good, "--model", listening_checkpoint)
    assert (code, out) == (1, alone)
    assert [line.split(maxsplit=1)[0] for line in err] == ["error:"] * 2
    assert "nowhere.png: there is no such file" in err[0]
    assert str(other) in err[1]


def test_a_file_that_the_model_fails_on_stops_no_other(
    run: Run, scene: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    Image.new("RGB", (8, 8)).save(broken)
    caption = Pipeline.caption

    def fails(self: Pipeline, image: str, *options: Any) -> str:
        if image == str(broken):
            raise FloatingPointError("the greatest logit is no number")
        return caption(self, image, *options)

    monkeypatch.setattr(Pipeline, "caption", fails)
    code, out, err = run("caption", broken, scene, "--model", tiny_checkpoint)
    assert (code, len(out), err) == (1, 1, [f"error: {broken}: the greatest logit is no number"])


@pytest.mark.usefixtures("loads_no_model")
@pytest.mark.parametrize("command", ["caption", "tag"])
def test_bad_files_alone_are_a_line_each_and_load_no_model(run: Run, command: str) -> None:
    code, out, err = run(command, "one.xyz", "two.xyz")
    assert (code, out) == (2, [])
    assert err == [f"error: {name}.xyz: there is no such file" for name in ("one", "two")]


def test_embed_is_a_vector_for_each_text(run: Run, tiny_checkpoint: Path) -> None:
    code, out, _ = run("embed", "red", "blue", "--json", "--model", tiny_checkpoint)
    assert code == 0
    red, blue = map(json.loads, out)
    assert (red["text"], blue["text"]) == ("red", "blue")
    assert len(red["embedding"]) == len(blue["embedding"]) == 128
    assert red["embedding"] != blue["embedding"]


def test_a_sound_is_refused_by_a_model_that_cannot_hear(
    run: Run, scene: Path, sound: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm_rwkv7.model.MMRWKV7.encode", None)  # nothing is encoded
    for command in (("tag", sound, sound), ("ask", scene, sound, "What do you hear?")):
        code, out, err = run(*command, "--model", tiny_checkpoint)
        assert (code, out, len(err)) == (2, [], 1)
        assert "no sound encoder" in err[0]


def test_media_are_told_apart_by_content_and_keep_their_order(scene: Path, sound: Path, tmp_path: Path) -> None:
    disguised, aiff = tmp_path / "picture.png", tmp_path / "sound.aiff"
    disguised.write_bytes(_wave())
    soundfile.write(aiff, np.zeros(100), 8000)
    files = [str(path) for path in (disguised, scene, sound, scene, aiff)]
    question, media = question_and_media([*files, "What?"])
    assert question == "What?"
    assert [part["type"] for part in media] == ["audio", "image", "audio", "image", "audio"]
    assert [part["audio"] for part in media[::2]] == files[::2]
    assert media[1]["image"].size == Image.open(scene).size


def test_ask_takes_sounds_among_pictures(run: Run, scene: Path, sound: Path, listening_checkpoint: Path) -> None:
    pipeline = Pipeline.from_pretrained(listening_checkpoint, "cpu")
    parts = {scene: {"type": "image", "image": scene}, sound: {"type": "audio", "audio": sound}}
    for order in ([scene, sound], [sound, scene], [sound]):
        content = [*(parts[path] for path in order), {"type": "text", "text": "What is it?"}]
        expected = pipeline.chat([{"role": "user", "content": content}])
        options = ("--json", "--model", listening_checkpoint, "--device", "cpu")
        code, out, err = run("ask", *order, "What is it?", *options)
        assert (code, len(out), err) == (0, 1, [])
        answer = json.loads(out[0])
        assert (answer["answer"], answer["usage"]["media_tokens"]) == (expected.text, expected.usage.media_tokens)


def test_tag_is_labels_with_scores(run: Run, sound: Path, listening_checkpoint: Path) -> None:
    options = ("--model", listening_checkpoint, "--device", "cpu")
    expected = Pipeline.from_pretrained(listening_checkpoint, "cpu").tag(sound)
    code, out, err = run("tag", sound, sound, "--json", *options)
    assert (code, len(out), err) == (0, 2, [])
    tags = [{"label": label, "score": score} for label, score in expected]
    assert [json.loads(line) for line in out] == [{"audio": str(sound), "tags": tags}] * 2

    code, out, _ = run("tag", sound, "--top", 2, *options)
    assert code == 0
    assert [line.split()[:2] for line in out] == [[label, f"{score:.2f}"] for label, score in expected[:2]]
    assert [len(line.split()[2]) for line in out] == [math.ceil(score * 20 - 1 / 16) for _, score in expected[:2]]
    _, several, _ = run("tag", sound, sound, *options)
    assert several[:: len(LABELS) + 1] == [f"{sound}:"] * 2


def test_chat_goes_on_from_line_to_line(
    run: Run, scene: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(tiny_checkpoint, "cpu")
    first = pipeline.ask("What is this?", [scene])
    second = pipeline.ask("Where is it?", state=first.state)
    assert second.text != pipeline.ask("Where is it?").text
    monkeypatch.setattr(sys, "stdin", StringIO("What is this?\nWhere is it?\n\nnot read\n"))
    code, out, _ = run("chat", scene, "--model", tiny_checkpoint, "--device", "cpu", "--remember")
    assert (code, out) == (0, [first.text, second.text])


def test_chat_goes_back_and_saves_and_goes_on(
    run: Run, scene: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(tiny_checkpoint, "cpu")
    first = pipeline.ask("What is this?", [scene])
    other, second = (pipeline.ask(question, state=first.state) for question in ("How many?", "Where is it?"))
    alone = pipeline.ask("Where is it?")
    seen = pipeline.ask("Where is it?", [scene])
    given = ("--model", tiny_checkpoint, "--device", "cpu", "--remember")

    def said(*lines: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", StringIO("".join(f"{line}\n" for line in lines)))
        code, out, _ = run("chat", *given)
        assert code == 0
        return out

    show, file = f"/image {scene}", tmp_path / "a talk"
    begun = [show, "What is this?"]
    assert said(*begun, "How many?", "/undo", "Where is it?") == [first.text, other.text, second.text]
    assert said(*begun, "/undo", "Where is it?") == [first.text, seen.text]  # the picture is there again
    assert said(*begun, "/retry", "Where is it?") == [first.text, first.text, second.text]
    assert said(*begun, "/reset", "Where is it?") == [first.text, alone.text]
    assert said(*begun, f"/save {file}", "/quit", "not read") == [first.text]
    assert said("/help", f"/load\t'{file}'", "Where is it?") == [second.text]


def test_what_cannot_be_asked_again_is_still_said(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_pretrained(tiny_checkpoint, "cpu")
    talking = Talk(pipeline, Sampling(max_new_tokens=4), Point(None))
    assert talking.take("What is this?")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stream", mock.Mock(side_effect=ValueError("the file is gone")))
        with pytest.raises(ValueError, match="the file is gone"):
            talking.take("/retry")
    talking.take("/retry")
    talking.take("/undo")
    with pytest.raises(ValueError, match="nothing was asked here yet"):
        talking.take("/undo")


def test_a_model_of_single_questions_is_asked_each_by_itself(
    scene: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, sampling, other = Pipeline.from_pretrained(tiny_checkpoint, "cpu"), Sampling(), tmp_path / "other.png"
    Image.new("RGB", (40, 30), "red").save(other)
    talking = Talk(pipeline, sampling, Point(None))
    assert not talking.remembers
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.model, "config", SimpleNamespace(vocabulary=None))
        assert Talk(pipeline, sampling, Point(None)).remembers
    lines = (f"/image {scene}", "What?", "Where?", f"/save {tmp_path}/state", f"/image {other}", "What?")
    assert all(talking.take(line) for line in lines)
    asked = [("What?", scene), ("Where?", scene), ("What?", other)]
    alone = [pipeline.ask(question, [picture], sampling=sampling) for question, picture in asked]
    assert capsys.readouterr().out.splitlines() == [answer.text for answer in alone]
    for line in ("/retry", "/undo", f"/save {tmp_path}/state"):  # what is after the answer before
        talking.take(line)
    capsys.readouterr()
    talking.take(f"/load {tmp_path}/state")
    talking.take("What?")
    assert capsys.readouterr().out.splitlines() == [pipeline.ask("What?", state=alone[1].state).text]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/undo", "nothing was asked here yet"),
        ("/retry", "nothing was asked here yet"),
        ("/save {}/state", "nothing to save"),
        ("/load {}/nowhere", "nowhere cannot be read"),
        ("/load {}/text", "/text: the file is not a state file"),
        ("/image {}/nowhere.png", "there is no such file"),
        ("/sound {}/text", "this model takes no sounds"),
        ("/image", "/image wants a file"),
        ("/sing", "there is no /sing; /help lists what there is"),
    ],
)
def test_a_command_of_a_chat_that_cannot_be_obeyed(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    (tmp_path / "text").write_text("a text")
    line = line.format(tmp_path)
    for terminal in (False, True):  # which goes on after it
        stdin = StringIO(f"{line}\nWhat?\n")
        monkeypatch.setattr(stdin, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = run("chat", "--model", tiny_checkpoint, "--device", "cpu")
        assert (code, len(out)) == ((0, 1) if terminal else (2, 0)), err
        assert any("error: " in told and said in told for told in err), err


def test_chat_takes_a_picture_and_a_sound(
    run: Run, scene: Path, sound: Path, listening_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.from_pretrained(listening_checkpoint, "cpu")
    for images in ([], [scene]):
        first = pipeline.ask("What is this?", images, [sound])
        second = pipeline.ask("Where is it?", state=first.state)
        monkeypatch.setattr(sys, "stdin", StringIO("What is this?\nWhere is it?\n"))
        code, out, _ = run("chat", *images, sound, "--model", listening_checkpoint, "--device", "cpu", "--remember")
        assert (code, out) == (0, [first.text, second.text])


def test_a_sound_without_words_is_for_a_model_that_needs_none(
    run: Run, sound: Path, listening_model: MMRWKV7, listening_checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = run("ask", sound, "", "--model", listening_checkpoint)
    assert (code, out, err) == (2, [], ["error: the question is empty"])
    model = without_words(listening_model)
    checkpoint.save(model, tmp_path / "model", "# wordless\n")
    code, out, _ = run("ask", sound, "", "--model", tmp_path / "model", "--device", "cpu")
    assert (code, out) == (0, [Pipeline(model).ask("", audio=[sound]).text])


def test_train_gets_its_own_arguments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("training.__main__.main", lambda arguments: seen.append(arguments) or 0)
    assert run("train", "smoke", "--set", "run=x", "--dry-run")[0] == 0
    assert seen == [["smoke", "--set", "run=x", "--dry-run"]]


def test_eval_gets_its_own_arguments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("eval.__main__.main", lambda arguments: seen.append(arguments) or 2)
    assert run("eval", "score", "--tasks", "scenes", "--help")[0] == 2
    assert seen == [["score", "--tasks", "scenes", "--help"]]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_known_towers_are_listed(run: Run) -> None:
    code, (line,), _ = run("encoders", "--json")
    rows = json.loads(line)
    assert code == 0
    assert all(list(row) == ["name", "library", "width", "tokens", "licence"] for row in rows)
    assert {
        "name": "visualrwkv-trio",
        "library": "timm",
        "width": 3200,
        "tokens": 1024,
        "licence": "apache-2.0",
    } in rows
    _, (header, *table), _ = run("encoders")
    assert header.split() == list(rows[0])
    assert [line.split() for line in table] == [[str(value) for value in row.values()] for row in rows]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ask", "--help"],
        ["ask", ""],
        ["ask", "nowhere.png", "x"],
        ["ask", "--document", "nowhere.txt", "x"],
        ["embed", ""],
        ["convert", "nano", "/proc/x"],
    ],
)
def test_an_answer_that_needs_no_model_loads_no_library(arguments: list[str]) -> None:
    code = (
        "import sys; from app.cli import main; main(sys.argv[1:]);"
        "print('loaded', *sorted({'torch', 'gradio', 'transformers', 'timm', 'rich'} & sys.modules.keys()))"
    )
    done = _python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m app.cli --help | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
