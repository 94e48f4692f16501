"""Chats over HTTP, by OpenAI's own client, against the same questions asked of the pipeline."""

import math
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from app.api.connections import Connection
from app.engine import Engine, EngineConfig
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import ask, audio, client_of, image, png, post, sent, served, until, wav


@pytest.fixture(scope="module")
def pipeline(listening_model: Any) -> Pipeline:
    return Pipeline(listening_model, "listening")


@pytest.fixture
def slow(endless_model: Any, unhurried: None) -> Iterator[tuple[Engine, str]]:
    """One slot, room for one more, and answers that end when they are told to."""
    pipeline = Pipeline(endless_model, "endless")
    with Engine(pipeline, EngineConfig(slots=1, max_waiting=1)) as engine, served(engine) as url:
        yield engine, url


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["listening"]
    assert client.models.retrieve("listening").owned_by == "mm-rwkv7"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


def test_questions_are_answered_as_by_the_pipeline(client: openai.OpenAI, pipeline: Pipeline) -> None:
    red, blue, sound = png("red"), png("blue", form="JPEG"), wav()
    for parts, images, sounds in (
        ((), [], []),
        ((image(red),), [red], []),
        ((image(red), image(blue, "image/jpeg")), [red, blue], []),
        ((audio(sound),), [], [sound]),
        ((image(blue, "image/jpeg"), audio(wav(form="FLAC"), "flac")), [blue], [wav(form="FLAC")]),
    ):
        found = client.chat.completions.create(model="listening", messages=ask("a red square", *parts))
        expected = pipeline.ask("a red square", images, sounds)
        assert found.choices[0].message.content == expected.text
        assert found.choices[0].finish_reason == expected.finish_reason == "length"
        assert found.usage is not None
        assert found.usage.prompt_tokens == expected.usage.prompt_tokens + expected.usage.media_tokens
        assert found.usage.completion_tokens == expected.usage.completion_tokens


def test_a_conversation_with_every_role(client: openai.OpenAI, pipeline: Pipeline) -> None:
    turns: Any = [
        {"role": "developer", "content": "a red"},
        {"role": "user", "content": "Describe"},
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": "What is in the picture?"},
    ]
    found = client.chat.completions.create(model="listening", messages=turns, max_completion_tokens=5)
    expected = pipeline.chat([{**turns[0], "role": "system"}, *turns[1:]], Sampling(5))
    assert found.choices[0].message.content == expected.text


def test_a_stream_joins_to_the_answer(client: openai.OpenAI, pipeline: Pipeline) -> None:
    stream = client.chat.completions.create(
        model="listening", messages=ask("Describe"), stream=True, stream_options={"include_usage": True}
    )
    *chunks, end, counts = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    expected = pipeline.ask("Describe")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert (end.choices[0].finish_reason, counts.choices) == ("length", [])
    assert counts.usage is not None
    assert counts.usage.completion_tokens == expected.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_texts_end_an_answer_and_are_no_part_of_it(client: openai.OpenAI, pipeline: Pipeline) -> None:
    whole = pipeline.ask("Describe").text
    stop = whole[3:5]
    found = client.chat.completions.create(
        model="listening", messages=ask("Describe"), stop=[stop, "\x00"], logprobs=True
    )
    choice = found.choices[0]
    assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert choice.logprobs is not None
    told = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content or []).decode().lstrip()
    assert told.startswith(choice.message.content)
    assert not told.removeprefix(choice.message.content).startswith(stop)


def test_seeds_and_choices(client: openai.OpenAI, pipeline: Pipeline, seed: int) -> None:
    found = client.chat.completions.create(
        model="listening", messages=ask("Describe"), n=3, seed=seed, temperature=1.5, top_p=0.9
    )
    texts = [choice.message.content for choice in found.choices]
    alone = [
        pipeline.ask("Describe", sampling=Sampling(temperature=1.5, top_p=0.9, seed=seed + i)).text for i in range(3)
    ]
    assert texts == alone, f"seed {seed}"
    assert found.usage is not None
    assert found.usage.completion_tokens == 24
    stream = client.chat.completions.create(
        model="listening", messages=ask("Describe"), n=3, seed=seed, temperature=1.5, top_p=0.9, stream=True
    )
    streamed = ["", "", ""]
    for chunk in stream:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == alone, f"seed {seed}"


def test_logprobs_are_those_of_the_model(client: openai.OpenAI, pipeline: Pipeline) -> None:
    found = client.chat.completions.create(
        model="listening", messages=ask("Describe"), logprobs=True, top_logprobs=20, max_tokens=4
    )
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.content or []
    assert len(content) == 4
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob
        assert token.token == bytes(token.bytes or []).decode()
        ordered = [other.logprob for other in token.top_logprobs]
        assert len(ordered) == 20
        assert ordered == sorted(ordered, reverse=True)
        assert sum(map(math.exp, ordered)) < 1 + 1e-6
    streamed = client.chat.completions.create(
        model="listening", messages=ask("Describe"), logprobs=True, top_logprobs=20, max_tokens=4, stream=True
    )
    pieces = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices[0].logprobs]
    assert [token.bytes for piece in pieces for token in piece.content or []] == [token.bytes for token in content]


def test_two_clients_at_once_do_not_mix(url: str, pipeline: Pipeline) -> None:
    questions = ["Describe", "What is in the picture?", "a red square", "User: a"] * 3
    expected = {question: pipeline.ask(question).text for question in questions}

    def answer(question: str) -> str:
        client = client_of(url)
        stream = client.chat.completions.create(model="listening", messages=ask(question), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answer, questions)) == [expected[question] for question in questions]


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_in_mid_answer_frees_the_slot(slow: tuple[Engine, str], stream: bool) -> None:
    engine, url = slow
    body = {"model": "endless", "messages": ask("Describe"), "stream": stream, "max_tokens": 16_000}
    with sent(url, "chat/completions", body) as connection:
        if stream:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        until(lambda: engine.counts.tokens_written, "it writes")
        assert engine.scheduler.free == 0
    until(lambda: engine.counts.cancelled == 1, "the request is cancelled")
    until(lambda: engine.scheduler.free == 1, "its slot is free")
    assert engine.counts.tokens_written < 16_000
    short = {"model": "endless", "messages": ask("Describe"), "max_tokens": 2}
    assert post(url, "chat/completions", short).status_code == 200


def test_who_takes_nothing_of_an_answer_is_let_go(endless_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Connection.connection_made

    def narrow(self: Connection, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", narrow)
    pipeline = Pipeline(endless_model, "endless")
    body = {"model": "endless", "messages": ask("Describe"), "stream": True, "max_tokens": 16_000}
    body |= {"logprobs": True, "top_logprobs": 20}  # more than the buffers on the way hold
    with (
        Engine(pipeline, EngineConfig(slots=1)) as engine,
        served(engine, send_s=0.2) as url,
        sent(url, "chat/completions", body, holds=1 << 12) as connection,
    ):
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        until(lambda: engine.counts.cancelled == 1, "the request is cancelled")
        assert httpx.get(f"{url}/v1/models").status_code == 200


def test_a_full_engine_answers_429_and_when_to_come_back(slow: tuple[Engine, str]) -> None:
    engine, url = slow
    body = {"model": "endless", "messages": ask("Describe"), "stream": True, "max_tokens": 16_000}
    client = client_of(url)
    with sent(url, "chat/completions", body) as first:
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        with ThreadPoolExecutor(1) as pool:
            short = {"model": "endless", "messages": ask("Describe"), "max_tokens": 1}
            waiting = pool.submit(post, url, "chat/completions", short)
            until(lambda: engine.scheduler.waiting, "the second one waits")
            with pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(model="endless", messages=ask("Describe"))
            assert int(refused.value.response.headers["retry-after"]) >= 1
            first.close()
            assert waiting.result().status_code == 200


def test_tools_are_taken_and_never_called(client: openai.OpenAI, pipeline: Pipeline) -> None:
    offered: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    for choice in ("auto", "none", None):
        asked: Any = {"tools": offered, **({} if choice is None else {"tool_choice": choice})}
        answer = client.chat.completions.create(model="listening", messages=ask("Describe"), **asked).choices[0]
        assert (answer.message.content, answer.finish_reason) == (pipeline.ask("Describe").text, "length")
        assert answer.message.tool_calls is None
