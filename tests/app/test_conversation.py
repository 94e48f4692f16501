"""One visitor's conversation, and many visitors' at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.conversation import Conversation, Progress, Visitors
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.sampling import Sampling

Pictures = dict[str, Path]
PLAIN = Sampling()


@pytest.fixture(scope="module")
def pipeline(tiny_model: Any) -> Pipeline:
    return Pipeline(tiny_model, "tiny")


def _last(progress: Iterator[Progress]) -> Answer:
    *_, last = progress
    assert last.answer is not None
    assert last.text == last.answer.text
    return last.answer


def test_each_question_starts_from_the_picture(pipeline: Pipeline, pictures: Pictures) -> None:
    conversation = Conversation(pipeline)
    for question in ("What is it?", "Where?", "What is it?"):
        answer = _last(conversation.ask(question, str(pictures["red"]), PLAIN))
        assert answer.text == pipeline.ask(question, [pictures["red"]]).text
    assert [turn["content"] for turn in conversation.turns[::2]] == ["What is it?", "Where?", "What is it?"]


def test_a_follow_up_starts_from_the_last_answer(pipeline: Pipeline, pictures: Pictures) -> None:
    conversation = Conversation(pipeline)
    _last(conversation.ask("What is it?", str(pictures["red"]), PLAIN))
    answer = _last(conversation.ask("Where?", str(pictures["red"]), PLAIN, follow_up=True))
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
        *_, last = conversation.ask("What?", str(pictures["red"]), PLAIN)
        read.append(last.read_s is not None)
    assert encoded == [1]
    assert read == [True, False, False]


def test_a_new_picture_begins_anew(pipeline: Pipeline, pictures: Pictures) -> None:
    conversation = Conversation(pipeline)
    _last(conversation.ask("What?", str(pictures["red"]), PLAIN))
    answer = _last(conversation.ask("What?", str(pictures["blue"]), PLAIN, follow_up=True))
    assert answer.text == pipeline.ask("What?", [pictures["blue"]]).text
    assert len(conversation.turns) == 2


def test_stop_ends_the_writing_and_keeps_what_was_written(endless_model: Any, pictures: Pictures) -> None:
    conversation = Conversation(Pipeline(endless_model, "endless"))
    writing = conversation.ask("What?", str(pictures["red"]), PLAIN)
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
    writing = conversation.ask("What?", None, PLAIN)
    next(writing)
    assert conversation.busy
    with pytest.raises(ValueError, match="still being written"):
        next(conversation.ask("And?", None, PLAIN))
    writing.close()  # type: ignore[attr-defined]
    assert not conversation.busy
    assert conversation.turns == []


@pytest.mark.parametrize(
    ("question", "picture", "said"), [(" ", None, "is empty"), ("What?", "nowhere.png", "no such file")]
)
def test_bad_input_is_refused_and_changes_nothing(
    pipeline: Pipeline, pictures: Pictures, question: str, picture: str | None, said: str
) -> None:
    conversation = Conversation(pipeline)
    before = _last(conversation.ask("What?", str(pictures["red"]), PLAIN)).text
    with pytest.raises(ValueError, match=said):
        next(conversation.ask(question, picture, PLAIN))
    assert not conversation.busy
    assert len(conversation.turns) == 2
    assert _last(conversation.ask("What?", str(pictures["red"]), PLAIN)).text == before


def test_visitors_do_not_hear_each_other(pipeline: Pipeline, pictures: Pictures) -> None:
    visitors = Visitors(pipeline)
    questions = ["What is it?", "Where?", "Which?"]

    def talk(name: str) -> list[str]:
        picture = str(pictures["red" if int(name) % 2 else "blue"])
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
