"""The tools for other models: what they answer, what they refuse, and what a client of the protocol sees."""

import asyncio
import base64
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import httpx
import pytest

from app.api.config import ServerConfig
from app.engine import Engine, EngineConfig
from app.server import create
from app.tools import PATH, Tools
from app.web.page import build
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from tests.app.servers import error_of, image, png, served, wav
from tests.ears import give_ears

KEY = "a key"  # pragma: allowlist secret
RED = image(png())["image_url"]["url"]
NOISE = base64.b64encode(wav()).decode()


@pytest.fixture(scope="module")
def pipeline(listening_model: Any) -> Pipeline:
    return Pipeline(listening_model, "listening")


@pytest.fixture(scope="module")
def engine(pipeline: Pipeline) -> Iterator[Engine]:
    with Engine(pipeline, EngineConfig(slots=2)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tools(engine: Engine) -> Tools:
    return Tools(engine, ServerConfig())


def test_tools_answer_as_the_pipeline_does(tools: Tools, pipeline: Pipeline) -> None:
    template = pipeline.model.config.template
    assert tools.ask_about_picture(RED, "a red") == pipeline.ask("a red", [png()]).text
    assert tools.caption_picture(RED) == pipeline.ask(template.caption, [png()]).text
    assert tools.ask_about_sound(NOISE, "wav", "a red") == pipeline.ask("a red", audio=[wav()]).text
    found = [line.rpartition(": ") for line in tools.tag_sound(NOISE, "wav", 3).splitlines()]
    assert [(label, float(score)) for label, _, score in found] == [
        (label, pytest.approx(score, abs=1e-3)) for label, score in pipeline.tag(wav(), 3)
    ]


def test_only_what_the_model_can_do_is_offered(tools: Tools, tiny_model: Any) -> None:
    assert [tool.__name__ for tool in tools.offered] == [
        "ask_about_picture",
        "caption_picture",
        "ask_about_sound",
        "tag_sound",
    ]
    with Engine(Pipeline(tiny_model), EngineConfig(slots=1)) as engine:
        assert len(Tools(engine, ServerConfig()).offered) == 2


def test_a_model_of_words_alone_has_no_tools(tiny_model: Any) -> None:
    config = dataclasses.replace(tiny_model.config, tower=None, projector=None)
    blind = MMRWKV7(config).eval()
    blind.lm.load_state_dict(tiny_model.lm.state_dict())
    with Engine(Pipeline(blind, "words"), EngineConfig(slots=1)) as engine:
        with pytest.raises(ValueError, match="words neither sees nor hears"):
            create(engine, ServerConfig(tools=True))
        blind = give_ears(blind)
    with Engine(Pipeline(blind), EngineConfig(slots=1)) as engine:
        offered = [tool.__name__ for tool in Tools(engine, ServerConfig()).offered]
        assert offered == ["ask_about_sound", "tag_sound"]


def test_a_long_sound_is_tagged_between_the_turns_of_others(
    tools: Tools, engine: Engine, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    call = engine.call

    def counted(function: Any) -> Any:
        calls.append(len(calls))
        return call(function)

    monkeypatch.setattr(engine, "call", counted)
    long = wav(25.0)  # 20 windows
    found = [line.rpartition(": ") for line in tools.tag_sound(base64.b64encode(long).decode(), "wav", 3).splitlines()]
    assert len(calls) == 3
    expected = [(label, pytest.approx(score, abs=1e-3)) for label, score in pipeline.tag(long, 3)]
    assert [(label, float(score)) for label, _, score in found] == expected


def test_a_tag_that_takes_too_long_is_given_up(engine: Engine) -> None:
    waiting = threading.Event()
    held = engine.call(lambda _: waiting.wait(30))
    with pytest.raises(gr.Error, match="no time"):
        Tools(engine, ServerConfig(answer_s=0.01)).tag_sound(NOISE, "wav")
    waiting.set()
    assert held.result()


def test_no_path_and_no_address_is_opened(tools: Tools) -> None:
    for picture in (
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/a.png",
        "data:image/svg+xml;base64,AAAA",
        "",
    ):
        with pytest.raises(gr.Error):
            tools.caption_picture(picture)
    for sound, kind in (("/etc/passwd", "wav"), (NOISE, "flac"), (NOISE, "exe"), ("", "wav")):
        with pytest.raises(gr.Error):
            tools.tag_sound(sound, kind)
    with pytest.raises(gr.Error, match="expected 1 to"):
        tools.tag_sound(NOISE, "wav", 0)


def test_nothing_but_the_protocol_is_reached(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = gr.mount_gradio_app
    monkeypatch.setattr(gr, "mount_gradio_app", lambda *given, **named: mount(*given, **{**named, "mcp_server": False}))
    headers = {"Authorization": f"Bearer {KEY}"}
    with served(engine, api_key=KEY, tools=True) as url:
        for route in ("upload", "run/caption_picture", "call/caption_picture", "mcp/../upload", "mcpx", "queue/join"):
            file = {"files": ("a.png", png())}
            assert httpx.post(f"{url}{PATH}/gradio_api/{route}", files=file).status_code == 401
            refused = httpx.post(f"{url}{PATH}/gradio_api/{route}", files=file, headers=headers)
            assert "there is nothing here but /tools/gradio_api/mcp/" in error_of(refused)["message"]
        for route in ("", "/", "/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd"):
            assert httpx.get(f"{url}{PATH}{route}", headers=headers).status_code == 404


def test_a_client_of_the_protocol_lists_and_calls_the_tools(engine: Engine, pipeline: Pipeline) -> None:
    pytest.importorskip("mcp", reason="the mcp package is not installed")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def asked(url: str) -> tuple[dict[str, Any], list[tuple[bool, str]]]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            streamablehttp_client(f"{url}{PATH}/gradio_api/mcp/", headers) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            found = {tool.name: tool.inputSchema for tool in (await session.list_tools()).tools}
            answers = [
                await session.call_tool(next(name for name in found if name.endswith(called)), arguments)
                for called, arguments in (
                    ("ask_about_picture", {"image": RED, "question": "a red"}),
                    ("tag_sound", {"audio": NOISE, "audio_format": "wav", "top": 2}),
                    ("caption_picture", {"image": "/etc/passwd"}),
                )
            ]
            return found, [(answer.isError, answer.content[0].text) for answer in answers]

    with served(engine, build(engine), api_key=KEY, page_password=KEY, tools=True) as url:
        assert httpx.post(f"{url}{PATH}/gradio_api/mcp/", json={}).status_code == 401
        assert httpx.get(f"{url}/gradio_api/mcp/schema").status_code in (401, 404)  # of the page
        assert "<!doctype html>" in httpx.get(url).text
        found, answers = asyncio.run(asked(url))
    assert len(found) == 4
    assert all("data URI" in str(schema) for name, schema in found.items() if name.endswith("picture"))
    assert answers[0] == (False, pipeline.ask("a red", [png()]).text)
    assert not answers[1][0]
    assert len(answers[1][1].splitlines()) == 2
    assert answers[2][0]
    assert "a picture is a data URI" in answers[2][1]
