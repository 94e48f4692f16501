"""One visitor's conversation, and many visitors' at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import soundfile

from app.conversation import Conversation, Medium, Progress, Visitors
from app.heard import HeardSounds
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.sampling import Sampling
from tests.ears import RATE, noise, without_words

Pictures = dict[str, Path]
PLAIN = Sampling()


@pytest.fixture(scope="module")
def pipeline(tiny_model: Any) -> Pipeline:
    return Pipeline(tiny_model, "tiny")


def _seen(picture: Path) -> list[Medium]:
    return [("image", str(picture))]


def _last(progress: Iterator[Progress]) -> Answer:
    *_, last = progress
    assert last.answer is not None
    assert last.text == last.answer.text
    return last.answer


def test_each_question_starts_from_the_picture(pipeline: Pipeline, pictures: Pictures) -> None:
    conversation = Conversation(pipeline)
    for question in ("What is it?", "Where?", "What is it?"):
        answer = _last(conversation.ask(question, _seen(pictures["red"]), PLAIN))
        assert answer.text == pipeline.ask(question, [pictures["red"]]).text
    assert [turn["content"] for turn in conversation.turns[::2]] == ["What is it?", "Where?", "What is it?"]


def test_a_follow_up_starts_from_the_last_answer(pipeline: Pipeline, pictures: Pictures) -> None:
    conversation = Conversation(pipeline)
    _last(conversation.ask("What is it?", _seen(pictures["red"]), PLAIN))
    answer = _last(conversation.ask("Where?", _seen(pictures["red"]), PLAIN, follow_up=True))
    first = pipeline.ask("What is it?", [pictures["red"]])
    assert answer.text == pipeline.ask("Where?", state=first.state).text
    assert answer.text != pipeline.ask("Where?", [pictures["red"]]).text


def test_a_picture_is_read_once(pipeline: Pipeline, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = pipeline.model.encode
    monkeypatch.setattr(pipeline.model, "encode", lambda pixels, tiles: encoded.append(len(pixels)) or encode(pixels))
    conversation = Conversation(pipeline)
    read = []
    for _ in range(3):
        *_, last = conversation.ask("What?", _seen(pictures["red"]), PLAIN)
        read.append([kind for kind, _ in last.read])
    assert encoded == [1]
    assert read == [["image"], [], []]


def test_a_picture_and_a_sound_are_each_read_once(
    listening_model: Any, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Pipeline(listening_model, "listener")
    for seed, name in enumerate(("one", "two")):
        soundfile.write(tmp_path / f"{name}.wav", noise(1.0, seed).numpy(), RATE, subtype="FLOAT")
    read: list[str] = []
    encode, hear = listening_model.encode, listening_model.sound.encoder.forward
    monkeypatch.setattr(listening_model, "encode", lambda *pixels: read.append("image") or encode(*pixels))
    monkeypatch.setattr(listening_model.sound.encoder, "forward", lambda *w: read.append("audio") or hear(*w))
    conversation = Conversation(listener)
    one, two = ([("audio", str(tmp_path / f"{name}.wav"))] for name in ("one", "two"))
    red = _seen(pictures["red"])
    for media, expected, encoded in (
        (red, ["image"], ["image"]),
        ([*red, *one], ["audio"], ["audio"]),
        ([*red, *one], [], []),
        ([*red, *two], ["audio"], ["audio"]),
        (two, ["audio"], []),
        ([*red, *two], ["image", "audio"], ["image"]),
        (red, [], []),
        ([], [], []),
    ):
        read.clear()
        *_, last = conversation.ask("What is it?", media, PLAIN)
        assert [kind for kind, _ in last.read] == expected
        assert read == encoded
        images, sounds = ([path for kind, path in media if kind == wanted] for wanted in ("image", "audio"))
        assert last.text == listener.ask("What is it?", images, sounds).text


def test_another_file_under_a_sounds_name_is_another_sound(listening_model: Any, tmp_path: Path) -> None:
    listener, path = Pipeline(listening_model, "listener"), tmp_path / "a.wav"
    heard = HeardSounds(listener)
    for seed in (0, 1):
        soundfile.write(path, noise(1.0 + seed, seed).numpy(), RATE, subtype="FLOAT")
        assert heard.of(str(path)).tags == listener.tag(path)
        answer = _last(Conversation(listener, heard).ask("What?", [("audio", str(path))], PLAIN))
        assert answer.text == listener.ask("What?", audio=[path]).text


def test_the_latest_sounds_are_kept_and_one_is_encoded_once_for_all(
    listening_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Pipeline(listening_model, "listener")
    encoded: list[str] = []
    hear = Pipeline.hear

    def slowly(pipeline: Pipeline, path: str, top: int) -> Any:
        encoded.append(Path(path).name)
        time.sleep(0.2)
        return hear(pipeline, path, top)

    monkeypatch.setattr(Pipeline, "hear", slowly)
    for seed in range(3):
        soundfile.write(tmp_path / f"{seed}.wav", noise(1.0, seed).numpy(), RATE, subtype="FLOAT")
    heard = HeardSounds(listener, capacity=2)
    first, second, third = (str(tmp_path / f"{seed}.wav") for seed in range(3))
    with ThreadPoolExecutor(4) as several:
        assert len({id(found) for found in several.map(heard.of, [first] * 4)}) == 1
    assert encoded == ["0.wav"]
    for path in (second, first, third, first, second):
        heard.of(path)
    assert encoded == ["0.wav", "1.wav", "2.wav", "1.wav"]


def test_a_sound_that_cannot_be_read_is_tried_again(listening_model: Any, tmp_path: Path) -> None:
    heard, path = HeardSounds(Pipeline(listening_model, "listener")), tmp_path / "a.wav"
    for _ in range(2):
        with pytest.raises(ValueError, match="no such file"):
            heard.of(str(path))


def test_a_model_that_needs_no_words_is_asked_about_a_sound_without_them(
    listening_model: Any, pictures: Pictures, wave: Path
) -> None:
    listener = Pipeline(without_words(listening_model), "listener")
    conversation = Conversation(listener)
    answer = _last(conversation.ask("", [("audio", str(wave))], PLAIN))
    assert answer.text == listener.ask("", audio=[wave]).text
    with pytest.raises(ValueError, match="question is empty"):
        next(conversation.ask("", [], PLAIN))


def test_a_new_picture_begins_anew(pipeline: Pipeline, pictures: Pictures) -> None:
    conversation = Conversation(pipeline)
    _last(conversation.ask("What?", _seen(pictures["red"]), PLAIN))
    answer = _last(conversation.ask("What?", _seen(pictures["blue"]), PLAIN, follow_up=True))
    assert answer.text == pipeline.ask("What?", [pictures["blue"]]).text
    assert len(conversation.turns) == 2


def test_stop_ends_the_writing_and_keeps_what_was_written(endless_model: Any, pictures: Pictures) -> None:
    conversation = Conversation(Pipeline(endless_model, "endless"))
    writing = conversation.ask("What?", _seen(pictures["red"]), PLAIN)
    shown = next(writing).text
    conversation.stop()
    answer = _last(writing)
    assert answer.finish_reason == "cancelled"
    assert answer.text.startswith(shown)
    assert answer.usage.completion_tokens < 100
    assert conversation.turns[-1] == {"role": "assistant", "content": answer.text}
    assert not conversation.busy


def test_a_visitor_who_leaves_frees_the_conversation(endless_model: Any) -> None:
    conversation = Conversation(Pipeline(endless_model, "endless"))
    writing = conversation.ask("What?", [], PLAIN)
    next(writing)
    assert conversation.busy
    with pytest.raises(ValueError, match="still being written"):
        next(conversation.ask("And?", [], PLAIN))
    writing.close()  # type: ignore[attr-defined]
    assert not conversation.busy
    assert conversation.turns == []


@pytest.mark.parametrize(
    ("question", "media", "said"),
    [
        (" ", [], "is empty"),
        ("What?", [("image", "nowhere.png")], "no such file"),
        ("What?", [("audio", "nowhere.wav")], "cannot hear"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    pipeline: Pipeline, pictures: Pictures, question: str, media: list[Medium], said: str
) -> None:
    conversation = Conversation(pipeline)
    before = _last(conversation.ask("What?", _seen(pictures["red"]), PLAIN)).text
    with pytest.raises(ValueError, match=said):
        next(conversation.ask(question, media, PLAIN))
    assert not conversation.busy
    assert len(conversation.turns) == 2
    assert _last(conversation.ask("What?", _seen(pictures["red"]), PLAIN)).text == before


def test_visitors_do_not_hear_each_other(pipeline: Pipeline, pictures: Pictures) -> None:
    visitors = Visitors(pipeline)
    questions = ["What is it?", "Where?", "Which?"]

    def talk(name: str) -> list[str]:
        picture = _seen(pictures["red" if int(name) % 2 else "blue"])
        return [_last(visitors.of(name).ask(question, picture, PLAIN, follow_up=True)).text for question in questions]

    alone = {name: talk(name) for name in ("100", "101")}
    assert alone["100"] != alone["101"]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(talk, map(str, range(8))))
    assert together == [alone["100"], alone["101"]] * 4


def test_visitors_are_bounded_in_number_and_age(pipeline: Pipeline) -> None:
    clock = count(step=10)
    visitors = Visitors(pipeline, capacity=2, seconds=35, clock=lambda: next(clock))
    first = visitors.of("first")
    second = visitors.of("second")
    assert visitors.of("first") is first  # and is now the most recent
    visitors.of("third")
    assert len(visitors) == 2
    assert visitors.of("first") is first
    assert visitors.of("second") is not second
    for _ in range(4):
        assert visitors.of("fourth")
    assert len(visitors) == 1
    visitors.forget("fourth")
    visitors.forget("nobody")
    assert len(visitors) == 0
