"""The page beside the interface, in one process: open, or behind its password."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engine import Engine, EngineConfig
from app.web.page import build
from mm_rwkv7.pipeline import Pipeline
from tests.app.servers import ask, error_of, post, served
from tests.app.web.page_client import PageClient

PASSWORD = "a password"  # pragma: allowlist secret


@pytest.fixture(scope="module")
def engine(tiny_model: Any) -> Iterator[Engine]:
    with Engine(Pipeline(tiny_model, "tiny"), EngineConfig(slots=2)) as engine:
        yield engine


def test_page_and_interface_share_a_process(engine: Engine, pictures: dict[str, Path]) -> None:
    with served(engine, build(engine)) as url:
        assert PageClient(url).ask("What?", pictures["red"]) == engine.pipeline.ask("What?", [pictures["red"]]).text
        asked = post(url, "chat/completions", {"model": "tiny", "messages": ask("Describe")}).json()
        assert asked["choices"][0]["message"]["content"] == engine.pipeline.ask("Describe").text
        assert "<!doctype html>" in httpx.get(url).text
        assert error_of(httpx.get(f"{url}/v1/nothing"))["type"] == "not_found_error"


def test_a_password_closes_the_page(engine: Engine, pictures: dict[str, Path]) -> None:
    with served(engine, build(engine), api_key=PASSWORD[:5], page_password=PASSWORD) as url:
        assert httpx.get(f"{url}/config").status_code == 401
        assert httpx.post(f"{url}/gradio_api/call/ask", json={"data": []}).status_code == 401
        assert httpx.post(f"{url}/gradio_api/upload", files={"files": b"x"}).status_code == 401
        for wrong in ("", "a passwort", PASSWORD[:5]):
            with pytest.raises(Exception, match=r"(?i)could not|credentials|login|auth"):
                PageClient(url, auth=("mm-rwkv7", wrong))
        assert PageClient(url, auth=("mm-rwkv7", PASSWORD)).ask("What?", pictures["red"])
