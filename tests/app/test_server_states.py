"""States over HTTP: kept, gone on from, forked, taken away and brought back, by whoever they belong to."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import load, save

from app.engine import Engine, EngineConfig
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import ask, client_of, error_of, image, png, post, served

BYTES = {"content-type": "application/octet-stream"}


def chat(client: openai.OpenAI, question: str, **extra: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=ask(question), extra_body=extra).choices[0]


def content(url: str, name: str) -> bytes:
    return httpx.get(f"{url}/v1/states/{name}/content").content


def bring(url: str, data: bytes) -> httpx.Response:
    return httpx.post(f"{url}/v1/states/import", content=data, headers=BYTES)


def test_a_picture_is_read_once_and_asked_many_times(url: str, pipeline: Pipeline) -> None:
    picture = png()
    read = post(url, "states", {"messages": [{"role": "user", "content": [image(picture)]}]}).json()
    assert (read["object"], read["open_turn"]) == ("state", True)
    client = client_of(url)
    for question in ("What is in the picture?", "a red square"):
        assert chat(client, question, state=read["id"]).message.content == pipeline.ask(question, [picture]).text


def test_a_conversation_goes_on_is_undone_and_forked(url: str, pipeline: Pipeline) -> None:
    client = client_of(url)
    first = chat(client, "Describe", keep_state=True)
    expected = pipeline.ask("Describe")
    forked = httpx.post(f"{url}/v1/states/{first.state}/fork").json()["id"]
    assert forked != first.state
    for name in (first.state, forked, first.state):  # a state is a value: asking changes nothing
        found = chat(client, "a red square", state=name)
        assert found.message.content == pipeline.ask("a red square", state=expected.state).text
    assert httpx.delete(f"{url}/v1/states/{first.state}").json()["deleted"]
    with pytest.raises(openai.NotFoundError):
        chat(client, "a red square", state=first.state)
    assert chat(client, "a red square", state=forked).message.content
    stream = client.chat.completions.create(
        model="tiny", messages=ask("Describe"), stream=True, extra_body={"keep_state": True}
    )
    *_, end = stream
    assert httpx.get(f"{url}/v1/states/{end.choices[0].state}").json()["tokens_seen"] == expected.state.tokens_seen


def test_a_text_goes_on_from_a_state(url: str, pipeline: Pipeline) -> None:
    first = post(url, "completions", {"model": "tiny", "prompt": "a red", "max_tokens": 2, "keep_state": True}).json()
    name = first["choices"][0]["state"]
    state = pipeline.generate("a red", Sampling(2)).state
    for echo in (False, True):
        body = {"model": "tiny", "prompt": "User: a", "max_tokens": 3, "state": name, "echo": echo, "logprobs": 1}
        found = post(url, "completions", body).json()["choices"][0]["text"].removeprefix("User: a")
        assert found == pipeline.generate("User: a", Sampling(3), state).text


def test_a_state_is_taken_away_and_brought_back(url: str, pipeline: Pipeline) -> None:
    client = client_of(url)
    first = chat(client, "Describe", keep_state=True)
    data = content(url, first.state)
    with Engine(pipeline, EngineConfig(slots=1)) as engine, served(engine) as other:
        assert httpx.get(f"{other}/v1/states/{first.state}").status_code == 404
        brought = bring(other, data).json()
        found = chat(client_of(other), "a red square", state=brought["id"])
    assert found.message.content == chat(client, "a red square", state=first.state).message.content
    assert brought["tokens_seen"] == httpx.get(f"{url}/v1/states/{first.state}").json()["tokens_seen"]


def test_hostile_state_files_are_refused(url: str, pipeline: Pipeline, tmp_path: Any) -> None:
    state = pipeline.ask("Describe").state
    state.save(tmp_path / "state")
    data = (tmp_path / "state").read_bytes()
    metadata = {
        "format": "mm-rwkv7-state/1",
        "model": pipeline.fingerprint,
        "tokens_seen": str(state.tokens_seen),
        "open_turn": "0",
    }
    tensors = load(data)
    name, shift = "layers.0.wkv", "layers.1.ffn_shift"
    assert bring(url, save(tensors, metadata)).status_code == 200
    wrong = [
        b"",
        b"\x80\x04\x95",  # a pickle
        data[: len(data) // 2],
        data + bytes(4 << 20),
        b"\xff" * 8 + data[8:],  # a header longer than any file
        save(tensors, {**metadata, "model": "0" * 64}),
        save(tensors, {**metadata, "tokens_seen": "9" * 4000}),
        save(tensors, {**metadata, "tokens_seen": "-1"}),
        save({**tensors, "more": tensors[name].clone()}, metadata),
        save({**tensors, name: tensors[name][:1].clone()}, metadata),
        save({**tensors, shift: tensors[shift][:3].clone()}, metadata),
        save({**tensors, shift: tensors[shift].to(torch.int32)}, metadata),
        save({**tensors, name: torch.full_like(tensors[name], torch.nan)}, metadata),
        save({**tensors, shift: torch.full_like(tensors[shift], torch.inf)}, metadata),
        save({key: value for key, value in tensors.items() if not key.startswith("layers.0")}, metadata),
    ]
    for number, file in enumerate(wrong):
        refused = bring(url, file)
        assert refused.status_code == 400, number
        assert "/tmp" not in error_of(refused)["message"]
    assert "belongs to model" in error_of(bring(url, wrong[5]))["message"]


def test_a_state_that_breaks_the_numbers_is_the_clients_fault(url: str, pipeline: Pipeline, tmp_path: Any) -> None:
    state = pipeline.ask("Describe").state.map(lambda tensor: torch.full_like(tensor, 3e38))
    state.save(tmp_path / "state")
    name = bring(url, (tmp_path / "state").read_bytes()).json()["id"]
    refused = post(url, "chat/completions", {"model": "tiny", "messages": ask("Describe"), "state": name})
    assert refused.status_code in (200, 400)
    if refused.status_code == 400:
        assert error_of(refused)["param"] == "state"
    assert post(url, "chat/completions", {"model": "tiny", "messages": ask("Describe")}).status_code == 200


def test_the_least_used_states_make_room(pipeline: Pipeline) -> None:
    size = sum(tensor.nbytes for layer in pipeline.model.lm.initial_state().layers for tensor in layer)
    with Engine(pipeline, EngineConfig(slots=1)) as engine, served(engine, state_bytes=2 * size) as url:
        names = [post(url, "states", {"messages": ask("Describe")}).json()["id"] for _ in range(2)]
        assert httpx.get(f"{url}/v1/states/{names[0]}").status_code == 200
        post(url, "states", {"messages": ask("Describe")})
        assert [httpx.get(f"{url}/v1/states/{name}").status_code for name in names] == [200, 404]
    with Engine(pipeline, EngineConfig(slots=1)) as engine, served(engine, state_bytes=size - 1) as url:
        assert "this server keeps" in error_of(post(url, "states", {"messages": ask("Describe")}))["message"]


def test_states_in_a_folder_outlive_their_server_and_are_shared(pipeline: Pipeline, tmp_path: Path) -> None:
    config = EngineConfig(slots=1, folder=tmp_path)
    with Engine(pipeline, config) as engine, served(engine) as url:
        first = chat(client_of(url), "Describe", keep_state=True)
        expected = chat(client_of(url), "a red square", state=first.state).message.content
        told = httpx.get(f"{url}/v1/states/{first.state}").json()
    with (
        Engine(pipeline, config) as engine,
        Engine(pipeline, config) as beside,
        served(engine) as url,
        served(beside) as other,
    ):
        for one in (url, other):
            assert chat(client_of(one), "a red square", state=first.state).message.content == expected
            assert httpx.get(f"{one}/v1/states/{first.state}").json() == told
        assert httpx.delete(f"{url}/v1/states/{first.state}").status_code == 200
        assert httpx.get(f"{other}/v1/states/{first.state}").status_code == 404
        damaged = chat(client_of(url), "Describe", keep_state=True).state
        next(tmp_path.rglob(f"{damaged}.safetensors")).write_bytes(b"damaged")
        assert httpx.get(f"{other}/v1/states/{damaged}").status_code == 404
        assert [path for path in tmp_path.glob("*/*.safetensors") if "state" not in path.name]  # what was read, too
        (tmp_path / "elsewhere.safetensors").write_bytes(content(url, chat(client_of(url), "a", keep_state=True).state))
        assert httpx.get(f"{url}/v1/states/..%2F..%2Felsewhere").status_code == 404


def test_the_folder_of_kept_states_is_bounded(pipeline: Pipeline, tmp_path: Path) -> None:
    config = EngineConfig(slots=1, folder=tmp_path)
    with Engine(pipeline, config) as engine, served(engine) as url:
        chat(client_of(url), "Describe", keep_state=True)
    size = next(tmp_path.rglob("state_*.safetensors")).stat().st_size
    with Engine(pipeline, config) as engine, served(engine, state_disk_bytes=3 * size) as url:
        names = [chat(client_of(url), "Describe", keep_state=True).state for _ in range(4)]
        assert [httpx.get(f"{url}/v1/states/{name}").status_code for name in names] == [404, 200, 200, 200]


def test_a_state_that_cannot_be_written_is_not_told(pipeline: Pipeline, tmp_path: Path) -> None:
    with Engine(pipeline, EngineConfig(slots=1, folder=tmp_path)) as engine, served(engine) as url:
        shutil.rmtree(tmp_path)
        body = {"model": "tiny", "messages": ask("Describe"), "keep_state": True}
        refused = post(url, "chat/completions", body)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "not_kept")
        assert str(tmp_path) not in refused.text
        streamed = post(url, "chat/completions", {**body, "stream": True}).text
        assert '"code":"not_kept"' in streamed.splitlines()[-2]
        assert "[DONE]" not in streamed
