"""Several models behind one server, each asked by its name; and the page that lets visitors choose."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import httpx
import openai
import pytest
import torch

from app.engine import Engine, EngineConfig
from app.models import Models
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import ask, client_of, error_of, image, png, post, served, until


@pytest.fixture(scope="module")
def known(endless_model: Any, listening_model: Any) -> dict[str, Pipeline]:
    """The second says something else."""
    other = deepcopy(listening_model)
    with torch.no_grad():
        other.lm.head.weight[:, 1:].neg_()
    return {"endless": Pipeline(endless_model, "/models/endless"), "listening": Pipeline(other, "listening")}


def opener(known: dict[str, Pipeline]) -> Any:
    def open_engine(source: str) -> Engine:
        name = source.rpartition("/")[2]
        if name not in known:
            raise ValueError(f"{source} is no model")
        return Engine(known[name], EngineConfig(slots=4))

    return open_engine


@pytest.fixture
def models(known: dict[str, Pipeline]) -> Iterator[Models]:
    models = Models(["/models/endless", "listening", "/models/broken"], opener(known))
    yield models
    models.close()


@pytest.fixture
def url(models: Models) -> Iterator[str]:
    with served(models) as url:
        yield url


def test_each_request_goes_to_the_model_that_it_names(url: str, models: Models, known: dict[str, Pipeline]) -> None:
    client = client_of(url)
    assert [model.id for model in client.models.list()] == ["endless", "listening", "broken"]
    assert client.models.retrieve("listening").id == "listening"
    assert not models.open
    question = ask("What is in the picture?", image(png()))
    expected = {name: pipeline.ask("What is in the picture?", [png()], sampling=Sampling(6)).text
                for name, pipeline in known.items()}  # fmt: skip
    assert expected["endless"] != expected["listening"]
    for name in ("endless", "listening", "endless"):
        answer = client.chat.completions.create(model=name, messages=question, max_tokens=6)
        assert (answer.choices[0].message.content, answer.model) == (expected[name], name)
        assert list(models.open) == [name]
    stream = client.chat.completions.create(model="listening", messages=question, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected["listening"]
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    assert "mm_rwkv7_answers_total 1.0" in httpx.get(f"{url}/metrics?model=listening").text


def test_names_that_are_none_and_models_that_do_not_open(url: str) -> None:
    client = client_of(url)
    with pytest.raises(openai.NotFoundError, match="there is no model 'other', only 'endless'"):
        client.chat.completions.create(model="other", messages=ask("What?"))
    assert httpx.get(f"{url}/v1/models/other").status_code == 404
    assert httpx.get(f"{url}/metrics?model=other").status_code == 404
    assert httpx.get(f"{url}/metrics?model=broken").status_code == 204
    response = post(url, "chat/completions", {"model": "broken", "messages": ask("What?")})
    assert response.status_code == 503
    assert "/models" not in error_of(response)["message"]
    for body in (b"", b"no json", b"[]", b'{"model": 3}'):
        refused = httpx.post(f"{url}/v1/chat/completions", content=body, timeout=60)
        assert refused.status_code == 400, body
        error_of(refused)


def test_states_outlast_their_models_engine(url: str, models: Models, known: dict[str, Pipeline]) -> None:
    client = client_of(url)
    kept = post(url, "states", {"model": "listening", "messages": ask("a red square")}).json()
    client.chat.completions.create(model="endless", messages=ask("What?"), max_tokens=2)
    assert list(models.open) == ["endless"]
    answer = client.chat.completions.create(
        model="listening", messages=ask("What is it?"), extra_body={"state": kept["id"]}, max_tokens=6
    )
    state = known["listening"].prefill([{"role": "user", "content": "a red square"}])
    assert (
        answer.choices[0].message.content
        == known["listening"].ask("What is it?", sampling=Sampling(6), state=state).text
    )
    at = f"{url}/v1/states/{kept['id']}"
    assert httpx.get(at).status_code == 404  # the first model has no such state
    assert httpx.get(f"{at}?model=listening").json()["tokens_seen"] == state.tokens_seen
    assert httpx.delete(f"{at}?model=listening").json()["deleted"]


@pytest.mark.usefixtures("unhurried")
def test_a_model_in_use_stays_and_others_are_told_to_wait(url: str, models: Models) -> None:
    client = client_of(url)
    stream = client.chat.completions.create(model="endless", messages=ask("What?"), max_tokens=16_000, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="listening", messages=ask("What?"))
    assert int(refused.value.response.headers["retry-after"]) > 0
    stream.close()
    until(lambda: not models.open["endless"].scheduler.rows, "the client's leaving is seen")

    def answered() -> bool:
        return post(url, "chat/completions", {"model": "listening", "messages": ask("?")}).status_code == 200

    until(answered, "the other model is opened")


def test_the_key_is_asked_for_before_a_model_opens(models: Models) -> None:
    with served(models, api_key="secret") as url:  # pragma: allowlist secret
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert post(url, "chat/completions", {"model": "endless", "messages": ask("?")}).status_code == 401
        assert not models.open
        assert len(client_of(url, "secret").models.list().data) == 3


def test_what_stands_for_an_engine_keeps_it_open_as_long_as_needed(known: dict[str, Pipeline]) -> None:
    from app.requests import Busy, Request

    models = Models(["endless", "listening"], opener(known))
    with pytest.raises(ValueError, match="there is no model"):
        models.engine("other")
    endless, listening = models.engine("endless"), models.engine("listening")
    assert endless.pipeline is known["endless"]
    request = Request(text="a red square", sampling=Sampling(max_new_tokens=100_000))
    ticket = endless.submit(request)
    next(iter(ticket))
    with pytest.raises(Busy):
        listening.call(lambda pipeline: pipeline.name)
    ticket.cancel()
    del ticket

    def free() -> bool:
        try:
            return listening.call(lambda pipeline: pipeline.name).result() == "listening"
        except Busy:
            return False

    until(free, "the ticket is forgotten")
    with ThreadPoolExecutor(4) as pool:  # conversations with both, one model in memory

        def talk(number: int) -> bool:
            engine = (endless, listening)[number % 2]
            try:
                return bool(engine.submit(Request(text="a red", sampling=Sampling(4))).result().text)
            except Busy:
                return True

        assert all(pool.map(talk, range(20)))
    models.close()
