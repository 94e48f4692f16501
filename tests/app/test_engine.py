"""The engine against the same questions asked alone, and what it does when it is full, late, left or broken."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from app.engine import Engine, EngineConfig
from app.requests import Busy, Cancelled, Expired, Piece, Request, Ticket
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.sampling import Sampling
from tests.ears import RATE, noise


@pytest.fixture(scope="module")
def pipeline(listening_model: Any) -> Pipeline:
    return Pipeline(listening_model, "listening")


@pytest.fixture(scope="module")
def endless(endless_model: Any) -> Pipeline:
    return Pipeline(endless_model, "endless")


@pytest.fixture
def engine(pipeline: Pipeline) -> Iterator[Engine]:
    with Engine(pipeline, EngineConfig(slots=4, portion=32)) as engine:
        yield engine


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Ticket]:
    """The tickets whose answers have come, in their order."""
    tickets: list[Ticket] = []
    put = Ticket.put

    def noted(ticket: Ticket, item: Piece | Answer | Exception) -> None:
        if isinstance(item, Answer):
            tickets.append(ticket)
        put(ticket, item)

    monkeypatch.setattr(Ticket, "put", noted)
    return tickets


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """What is submitted meanwhile comes to the engine at one moment."""
    gate = threading.Event()
    engine.call(lambda _: gate.wait())
    try:
        yield
    finally:
        gate.set()


def ask(question: str, *media: Any) -> list[dict[str, Any]]:
    kinds = [("audio" if isinstance(medium, tuple) else "image", medium) for medium in media]
    parts = [{"type": kind, kind: medium} for kind, medium in kinds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def state_error(found: Answer, expected: Answer) -> float:
    pairs = zip(found.state.layers, expected.state.layers, strict=True)
    return max(float((a - b).norm() / b.norm()) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def long() -> Request:
    """One that takes minutes: whatever is done to it comes before its end, however late a test's own thread is."""
    return Request(ask("Describe"), sampling=Sampling(10**6))


def first_piece(ticket: Ticket) -> None:
    assert isinstance(next(iter(ticket)), Piece)


def test_many_at_once_are_answered_as_if_each_were_alone(engine: Engine, pipeline: Pipeline, pictures: Any) -> None:
    sound = (noise(2.0).numpy(), RATE)
    asked = [
        ask("What is in the picture?"),
        ask("a red square", pictures["red"]),
        ask("Describe the picture.", pictures["red"], pictures["blue"]),
        ask("What is in the picture?", sound),
        ask("a red square", pictures["blue"], sound),
        [{"role": "system", "content": "a red"}, *ask("Describe", pictures["red"])],
    ] * 2
    tickets = [engine.submit(Request(messages)) for messages in asked]
    for ticket, messages in zip(tickets, asked, strict=True):
        found, expected = ticket.result(), pipeline.chat(messages)
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert found.usage == expected.usage
        assert found.state.tokens_seen == expected.state.tokens_seen
        assert str(found.state.model) == pipeline.fingerprint
        assert state_error(found, expected) < 1e-4
    assert engine.media.encoded == 3


def test_pieces_join_to_the_answer_and_tell_their_tokens(engine: Engine, pipeline: Pipeline) -> None:
    *pieces, answer = engine.submit(Request(ask("Describe"), logprobs=3))
    assert isinstance(answer, Answer)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == answer.text
    scores = [score for piece in pieces if isinstance(piece, Piece) for score in piece.scores]
    assert b"".join(score.written for score in scores).decode().lstrip() == answer.text
    assert all(score.logprob == score.top[0][1] and len(score.top) == 3 for score in scores)
    assert pipeline.chat(ask("Describe")).text == answer.text


def test_texts_are_continued_and_prompts_only_read(engine: Engine, pipeline: Pipeline, pictures: Any) -> None:
    found = engine.submit(Request(text="a red square", sampling=Sampling(max_new_tokens=5))).result()
    assert found.text == pipeline.generate("a red square", Sampling(max_new_tokens=5)).text
    opened = engine.submit(
        Request([{"role": "user", "content": ask("x", pictures["red"])[0]["content"][:1]}], write=False)
    )
    state = opened.result().state
    assert state.open_turn
    assert opened.result().finish_reason == "read"
    again = engine.submit(Request(ask("Where is the square?"), state=state)).result()
    assert again.text == pipeline.ask("Where is the square?", [pictures["red"]]).text


def test_a_picture_is_read_once(engine: Engine, pipeline: Pipeline, pictures: Any) -> None:
    for question in ("What is it?", "Where is it?"):
        assert engine.submit(Request(ask(question, pictures["red"]))).result().text
    opened = len(pipeline.processor(ask("What is it?", pictures["red"])[:1]).ids[0])
    assert (engine.media.encoded, engine.states.hits) == (1, 1)
    assert engine.counts.tokens_recalled > pipeline.model.image_tokens
    before = engine.counts.tokens_recalled
    engine.submit(Request(ask("What is it?", pictures["blue"]))).result()
    assert engine.media.encoded == 2
    assert engine.counts.tokens_recalled == before  # "User: " is not worth a place of its own
    engine.submit(Request(ask("What is it?", pictures["red"]), sampling=Sampling(1, 1.0))).result()
    assert engine.counts.tokens_recalled == before + opened  # asked again: all of it is known


def test_a_conversation_told_anew_goes_on_where_it_was(engine: Engine, pipeline: Pipeline) -> None:
    turns = ask("What is in the picture?")
    answer = engine.submit(Request(turns, sampling=Sampling(3))).result()
    turns = [*turns, {"role": "assistant", "content": answer.text}, *ask("Describe")]
    before = engine.counts.tokens_recalled
    again = engine.submit(Request(turns)).result()
    assert again.text == pipeline.chat(turns).text
    assert engine.counts.tokens_recalled > before


def test_stopping_keeps_what_was_written_and_cancelling_frees_the_slot(endless: Pipeline) -> None:
    with Engine(endless, EngineConfig(slots=1)) as engine:
        one, two, three = (engine.submit(long()) for _ in range(3))
        first_piece(one)
        one.stop()
        answer = one.result()
        assert answer.finish_reason == "cancelled"
        written = answer.usage.completion_tokens
        assert written > 0
        alone = endless.chat(ask("Describe"), Sampling(written))
        assert alone.text == answer.text
        assert state_error(answer, alone) < 1e-4
        first_piece(two)
        with three, two:
            two.cancel()
            first_piece(three)
            with pytest.raises(Cancelled):
                two.result()
        assert engine.submit(Request(ask("Describe"), sampling=Sampling(2))).result().text


def test_a_full_engine_says_when_to_come_back(endless: Pipeline) -> None:
    with Engine(endless, EngineConfig(slots=1, max_waiting=1)) as engine:
        one = engine.submit(long())
        first_piece(one)
        two = engine.submit(Request(ask("Describe"), sampling=Sampling(1)))
        with pytest.raises(Busy) as refused:
            engine.submit(Request(ask("Describe")))
        assert 1 <= refused.value.retry_after_s < 600
        one.cancel()
        two.result()
        with pytest.raises(ValueError, match="question is empty"):
            engine.submit(Request([{"role": "user", "content": ""}]))
        assert engine.submit(Request(ask("Describe"), sampling=Sampling(1))).result()


def test_deadlines(endless: Pipeline) -> None:
    with Engine(endless, EngineConfig(slots=1)) as engine:
        busy = engine.submit(long())
        first_piece(busy)
        with pytest.raises(Expired):
            engine.submit(Request(ask("Describe"), timeout_s=0.01)).result()
        busy.cancel()
        late = engine.submit(Request(ask("Describe"), sampling=Sampling(10**6), timeout_s=3600))
        first_piece(late)
        (row,) = engine.scheduler.writing
        row.submitted -= 3600  # an hour is over
        answer = late.result()
        assert answer.finish_reason == "deadline"
        first = min(5, answer.usage.completion_tokens)
        assert answer.text.startswith(endless.chat(ask("Describe"), Sampling(first)).text)


def test_a_long_text_does_not_hold_up_a_short_one(endless: Pipeline, ended: list[Ticket]) -> None:
    with Engine(endless, EngineConfig(slots=2, portion=16, idle_portion=16)) as engine:
        with held(engine):
            late = engine.submit(Request(ask("a red square " * 400), sampling=Sampling(1)))
            soon = engine.submit(Request(ask("Describe"), sampling=Sampling(20)))
        assert soon.result().usage.completion_tokens == 20
        assert late.result().usage.prompt_tokens > 1000
    assert ended == [soon, late]


def test_broken_numbers_are_their_own_request_s(engine: Engine, pipeline: Pipeline) -> None:
    broken = pipeline.chat(ask("Describe")).state.map(lambda tensor: torch.full_like(tensor, torch.nan))
    tickets = [engine.submit(Request(ask("Describe"), state=state)) for state in (None, broken, None)]
    assert tickets[0].result().text == tickets[2].result().text
    with pytest.raises(FloatingPointError):
        tickets[1].result()


def test_a_failure_of_the_engine_reaches_everybody(endless: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = Engine(endless, EngineConfig(slots=1))
    one, two = (engine.submit(long()) for _ in range(2))
    first_piece(one)

    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(engine, "_choose", fail)
    for ticket in (one, two):
        with pytest.raises(RuntimeError, match="the engine has failed"):
            ticket.result()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit(Request(ask("Describe")))
    engine.close()


def test_closing_ends_everything(endless: Pipeline) -> None:
    engine = Engine(endless, EngineConfig(slots=1))
    tickets = [engine.submit(long()) for _ in range(3)]
    engine.close()
    for ticket in tickets:
        with pytest.raises(Cancelled):
            ticket.result()


def test_event_loops_are_served_without_threads(engine: Engine, pipeline: Pipeline) -> None:
    expected = pipeline.chat(ask("Describe")).text

    async def one() -> str:
        ticket = await asyncio.to_thread(engine.submit, Request(ask("Describe")))
        return "".join([piece.text async for piece in ticket if isinstance(piece, Piece)])

    async def all_of_them() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*(one() for _ in range(12))), 60)

    assert asyncio.run(all_of_them()) == [expected] * 12
    called = engine.call(lambda given: given.tag((noise(1.0).numpy(), RATE), 1))
    assert called.result() == pipeline.tag((noise(1.0).numpy(), RATE), 1)


def test_a_sound_is_encoded_while_others_are_answered(pipeline: Pipeline, ended: list[Ticket]) -> None:
    long, short = ((noise(seconds, 1).numpy(), RATE) for seconds in (300.0, 1.0))
    with Engine(pipeline, EngineConfig(slots=2, media_bytes=1 << 16)) as engine:
        with held(engine):
            late = engine.submit(Request(ask("Describe", long)))
            soon = engine.submit(Request(ask("Describe", short)))
        assert soon.result().text == pipeline.chat(ask("Describe", short)).text
        assert late.result().text == pipeline.chat(ask("Describe", long)).text
        assert engine.media.held <= 1 << 16
    assert ended == [soon, late]
