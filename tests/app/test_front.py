"""A front before two servers of one folder that break off at random: what clients are told is as if they never had."""

import json
import random
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from app import front, server
from app.api.config import ServerConfig
from app.engine import Engine, EngineConfig
from app.front import Sent, answers
from app.rerun import Differs, Gone, Retold
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import ask, client_of, error_of, listening, post, sent, until

AT_ONCE = 64


class Replicas:
    """Applications; each answer comes from the next one and breaks off after so many messages as `ends` says."""

    def __init__(self, engines: list[Engine]) -> None:
        self.apps = [server.create(engine, ServerConfig()) for engine in engines]
        self.ends: list[int | None] = []
        self.calls: list[tuple[Sent, str]] = []
        self.gone = 0

    async def __call__(self, sent: Sent, session: str) -> AsyncGenerator[Any, None]:
        app = self.apps[len(self.calls) % len(self.apps)]
        self.calls.append((sent, session))
        end = self.ends.pop() if self.ends else None
        number = 0
        messages = answers(app, sent)
        try:
            async for message in messages:
                if number == end:
                    self.gone += 1
                    raise Gone("it was killed")
                yield message
                number += 1
        finally:
            await messages.aclose()


@pytest.fixture(scope="module")
def replicas(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    config = EngineConfig(slots=4, folder=tmp_path_factory.mktemp("states"))
    with Engine(pipeline, config) as one, Engine(pipeline, config) as other:
        yield Replicas([one, other])


@pytest.fixture(scope="module")
def url(replicas: Replicas) -> Iterator[str]:
    with listening(front.create(replicas, ServerConfig(), AT_ONCE)) as url:
        yield url


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, replicas: Replicas) -> None:
    monkeypatch.setattr(front, "PAUSE_S", 0.0)
    replicas.ends.clear()
    replicas.calls.clear()
    replicas.gone = 0


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[list[str], list[str]]:
    """The texts of a stream's choices, and its ids."""
    texts, ids = [""] * fields.get("n", 1), []
    for chunk in client.chat.completions.create(
        model="tiny", stream=True, stream_options={"include_usage": True}, **fields
    ):
        ids.append(chunk.id)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts, ids


def written(client: openai.OpenAI, **fields: Any) -> tuple[list[str], list[str]]:
    """The same of an answer in one piece."""
    answer = client.chat.completions.create(model="tiny", **fields)
    return [choice.message.content or "" for choice in answer.choices], [answer.id]


def test_answers_that_break_off_are_told_to_their_end(
    client: openai.OpenAI, replicas: Replicas, pipeline: Pipeline, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        n, temperature, own = rng.choice([1, 3]), rng.choice([0.0, 1.5]), rng.randrange(1000)
        replicas.ends = [rng.randrange(14) for _ in range(rng.randrange(4))]
        texts, ids = streamed(client, messages=ask("Describe"), n=n, temperature=temperature, seed=own)
        alone = [
            pipeline.ask("Describe", sampling=Sampling(temperature=temperature, seed=own + i)).text for i in range(n)
        ]
        assert texts == alone, f"seed {seed}"
        assert len(set(ids)) == 1, f"seed {seed}"
    assert replicas.gone, f"seed {seed}"


def test_what_samples_without_a_seed_is_the_same_in_every_run(client: openai.OpenAI, replicas: Replicas) -> None:
    replicas.ends = [6, 4]
    texts, _ = streamed(client, messages=ask("Describe"), temperature=1.5)
    assert texts[0]
    assert replicas.gone == 2
    seeds = {json.loads(sent.body)["seed"] for sent, _ in replicas.calls}
    assert len(seeds) == 1
    assert streamed(client, messages=ask("Describe"), temperature=1.5, seed=seeds.pop())[0] == texts


def test_conversations_go_on_wherever_they_are_asked(
    client: openai.OpenAI, replicas: Replicas, pipeline: Pipeline
) -> None:
    state, expected = None, None
    for question in ("Describe", "a red square", "What is in the picture?"):
        replicas.ends = [0]
        extra = {"keep_state": True, **({} if state is None else {"state": state})}
        choice = client.chat.completions.create(model="tiny", messages=ask(question), extra_body=extra).choices[0]
        expected = pipeline.ask(question, state=None if expected is None else expected.state)
        assert choice.message.content == expected.text
        state = choice.state  # type: ignore[attr-defined]


def test_who_belongs_together_has_one_session(url: str, replicas: Replicas) -> None:
    def session(turns: Any, headers: dict[str, str] | None = None, **fields: Any) -> str:
        post(
            url, "chat/completions", {"model": "tiny", "messages": turns, "max_tokens": 1, **fields}, **(headers or {})
        )
        return replicas.calls[-1][1]

    first = ask("Describe")
    later = [*first, {"role": "assistant", "content": "a"}, *ask("a red")]
    assert session(first) == session(later) != session(ask("a red"))
    assert session(first, {"x-session-id": "mine"}) == "mine"
    assert session(first, state="state_0") == "state_0"
    assert len(session(first, {"x-session-id": "x" * 4000})) == front.LONGEST_SESSION
    for turns in (None, 3, [], [None], "x", {}):
        session(turns)


def test_other_routes_pass_and_end_in_an_error_where_nobody_answers(url: str, replicas: Replicas) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "model": "tiny"}
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
    assert error_of(httpx.get(f"{url}/v1/nothing"))["type"] == "not_found_error"
    wrong = httpx.get(f"{url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(post(url, "chat/completions", {"model": "tiny", "messages": []}))["param"] == "messages"
    broken = httpx.post(f"{url}/v1/completions", content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert broken.status_code == 400
    replicas.ends = [0] * front.ATTEMPTS
    refused = post(url, "chat/completions", {"model": "tiny", "messages": ask("Describe")})
    assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")
    replicas.ends = [0] * front.ATTEMPTS
    assert httpx.get(f"{url}/healthz").status_code == 503
    replicas.ends = [*[0] * front.ATTEMPTS, 3]
    stream = post(url, "chat/completions", {"model": "tiny", "messages": ask("Describe"), "stream": True})
    assert '"code": "interrupted"' in stream.text.splitlines()[-2]
    assert "[DONE]" not in stream.text


def test_only_the_key_opens(replicas: Replicas) -> None:
    with listening(
        front.create(replicas, ServerConfig(api_key="a secret"), AT_ONCE)  # pragma: allowlist secret
    ) as url:  # pragma: allowlist secret
        assert error_of(httpx.get(f"{url}/v1/models"))["code"] == "invalid_api_key"
        assert client_of(url, "a secret").models.list().data
    assert all(name != b"authorization" for sent, _ in replicas.calls for name, _ in sent.headers)


@pytest.mark.usefixtures("unhurried")
def test_who_leaves_in_mid_answer_frees_the_slot(endless_model: Any) -> None:
    body = {"model": "endless", "messages": ask("Describe"), "stream": True, "max_tokens": 16_000}
    with (
        Engine(Pipeline(endless_model, "endless"), EngineConfig(slots=1)) as engine,
        listening(front.create(Replicas([engine]), ServerConfig(), AT_ONCE)) as url,
    ):
        with sent(url, "chat/completions", body) as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
            until(lambda: engine.counts.tokens_written, "it writes")
        until(lambda: engine.counts.cancelled == 1, "the request is cancelled")


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_ends_is_a_replica_that_goes(
    endless_model: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Pipeline(endless_model, "tiny")
    with Engine(ending, EngineConfig(slots=2)) as other, Engine(ending, EngineConfig(slots=2)) as first:
        choose = first._choose

        def until_it_ends(rows: Any) -> Any:
            if first.counts.tokens_written > 20:
                until(lambda: not first.alive, "it is closed")
            return choose(rows)

        monkeypatch.setattr(first, "_choose", until_it_ends)
        replicas = Replicas([first, other])
        with listening(front.create(replicas, ServerConfig(), AT_ONCE)) as url, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(streamed if stream else written, client_of(url), messages=ask("Describe"))
            until(lambda: first.counts.tokens_written > 20, "it writes")
            first.close()
            texts, _ = asked.result()
    assert len(replicas.calls) == 2
    assert texts == [ending.ask("Describe").text]


def test_another_answer_is_not_told_as_the_same() -> None:
    def event(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        return f"data: {json.dumps({'id': text, 'created': 1, 'choices': [choice]})}\n\n".encode()

    retold = Retold()
    retold.begin()
    whole = event("a") + event("b")
    told = retold.feed(whole[:20]) + retold.feed(whole[20:])
    retold.begin()
    assert retold.feed(event("a")) == b""
    with pytest.raises(Differs):
        retold.feed(event("c"))
    retold.begin()
    assert retold.feed(whole) == b""
    assert retold.feed(event("c")).count(b'"id":"a"') == told.count(b'"id":"a"') // 2 == 1
