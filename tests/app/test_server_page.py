"""The page beside the interface, in one process: open, or behind its password."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file

from app.engine import Engine, EngineConfig
from app.page import build
from mm_rwkv7.pipeline import Pipeline
from tests.app.servers import ask, error_of, post, served

PASSWORD = "a password"  # pragma: allowlist secret


def asked_of(page: Client, picture: Path) -> str:
    """What the page answers."""
    controls = {"follow_up": False, "temperature": 0, "top_p": 1, "top_k": 0, "presence_penalty": 0, "count_penalty": 0}
    controls |= {"penalty_decay": 1, "max_new_tokens": 8, "seed": 0}
    chat, _, _ = page.predict(picture=handle_file(picture), question="What?", **controls, api_name="/ask")
    assert chat[-1]["role"] == "assistant"
    text: str = chat[-1]["content"][0]["text"]
    return text


@pytest.fixture(scope="module")
def engine(tiny_model: Any) -> Iterator[Engine]:
    with Engine(Pipeline(tiny_model, "tiny"), EngineConfig(slots=2)) as engine:
        yield engine


def test_page_and_interface_share_a_process(engine: Engine, pictures: dict[str, Path]) -> None:
    with served(engine, build(engine.pipeline)) as url:
        page = Client(url, verbose=False)
        assert asked_of(page, pictures["red"]) == engine.pipeline.ask("What?", [pictures["red"]]).text
        asked = post(url, "chat/completions", {"model": "tiny", "messages": ask("Describe")}).json()
        assert asked["choices"][0]["message"]["content"] == engine.pipeline.ask("Describe").text
        assert "<!doctype html>" in httpx.get(url).text
        assert error_of(httpx.get(f"{url}/v1/nothing"))["type"] == "not_found_error"


def test_a_password_closes_the_page(engine: Engine, pictures: dict[str, Path]) -> None:
    with served(engine, build(engine.pipeline), api_key=PASSWORD[:5], page_password=PASSWORD) as url:
        assert httpx.get(f"{url}/config").status_code == 401
        assert httpx.post(f"{url}/gradio_api/call/ask", json={"data": []}).status_code == 401
        assert httpx.post(f"{url}/gradio_api/upload", files={"files": b"x"}).status_code == 401
        for wrong in ("", "a passwort", PASSWORD[:5]):
            with pytest.raises(Exception, match=r"(?i)could not|credentials|login|auth"):
                Client(url, verbose=False, auth=("mm-rwkv7", wrong))
        page = Client(url, verbose=False, auth=("mm-rwkv7", PASSWORD))
        assert asked_of(page, pictures["red"])
