"""The page beside the interface, in one process: open, or behind its password."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import serving
from app.api.config import ServerConfig
from app.api.page_bodies import PageBodies
from app.cli import main
from app.engine import Engine, EngineConfig
from app.serving import LARGEST_UPLOAD
from app.upload_folder import VARIABLE, bytes_lying, own_folder
from app.web.page import build
from mm_rwkv7.pipeline import Pipeline
from tests.app.servers import JSON, ask, error_of, listening, post, served
from tests.app.web.page_client import CONTROLS, PageClient

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


def test_what_the_page_is_sent_is_bounded(engine: Engine) -> None:
    with served(engine, build(engine), page_password=PASSWORD, body_bytes=4_000, media=1) as url:
        for path in ("/gradio_api/queue/join", "/gradio_api/run/ask", "/login", "/gradio_api/component_server"):
            large = b'{"data": ["' + b"x" * 8_000 + b'"]}'
            refused = httpx.post(f"{url}{path}", content=large, headers=JSON)
            assert (refused.status_code, error_of(refused)["code"]) == (413, "too_large")
        untold = httpx.post(f"{url}/gradio_api/queue/join", content=iter([large]), headers=JSON)  # its length is not
        assert (untold.status_code, error_of(untold)["code"]) == (413, "too_large")
        upload = f"{url}/gradio_api/upload"
        assert httpx.post(upload, files={"files": b"x" * 8_000}).status_code == 401
        with httpx.Client() as visitor:
            visitor.post(f"{url}/login", data={"username": "mm-rwkv7", "password": PASSWORD})
            assert visitor.post(upload, files={"files": b"x" * 8_000}).status_code == 200
            assert visitor.post(upload, files={"files": b"x" * (LARGEST_UPLOAD + 4_000)}).status_code == 413


def test_a_page_is_not_sent_more_json_than_can_be_parsed_at_once(engine: Engine) -> None:
    with served(engine, build(engine), json_keys=20) as url:
        body = {"data": [{str(i): 0 for i in range(21)}]}
        for path in ("/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/component_server"):
            refused = httpx.post(f"{url}{path}", json=body)
            assert (refused.status_code, error_of(refused)["code"]) == (413, "too_large")
        assert httpx.post(f"{url}/gradio_api/call/ask", json={"data": ["a:" * 50]}).status_code != 413
        for encoding in ("utf-16", "utf-16-le", "utf-32-be"):  # parsers take these as well
            content = json.dumps(body).encode(encoding)
            refused = httpx.post(f"{url}/gradio_api/queue/join", content=content, headers=JSON)
            assert (refused.status_code, error_of(refused)["code"]) == (400, "wrong_encoding")
        file = {"content-type": "application/octet-stream"}  # is no JSON, whatever it looks like
        assert httpx.post(f"{url}/v1/states/import", content=b"::[," * 41, headers=file).status_code == 400


def test_the_page_alone_has_the_same_checks(
    tiny_checkpoint: Path, pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def visited(app: FastAPI, host: str, port: int) -> None:
        asked.append((host, port))
        with listening(app) as url:
            join = f"{url}/gradio_api/queue/join"
            assert "<!doctype html>" in httpx.get(url).text
            assert PageClient(url).ask("What?", pictures["red"])
            assert httpx.get(url, headers={"host": "mine.example"}).status_code == 200
            strange = httpx.get(url, headers={"host": "elsewhere.example"})
            assert (strange.status_code, error_of(strange)["code"]) == (421, "wrong_host")
            strange = httpx.post(join, json={}, headers={"origin": "https://elsewhere.example"})
            assert (strange.status_code, error_of(strange)["code"]) == (403, "wrong_origin")
            large = httpx.post(join, content=b"x" * (ServerConfig.body_bytes + 1), headers=JSON)
            assert (large.status_code, error_of(large)["code"]) == (413, "too_large")

    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(serving, "listen", visited)
    monkeypatch.setattr("app.serve_commands.check_address", lambda *_: None)
    assert main(["app", "--model", str(tiny_checkpoint), "--port", "7861", "--allow-host", "mine.example"]) == 0
    assert asked == [("127.0.0.1", 7861)]


def test_a_body_of_unknown_length_is_given_up(tmp_path: Path) -> None:
    read: list[int] = []

    async def swallows(scope: Any, receive: Any, send: Any) -> None:
        while True:
            read.append(len((await receive())["body"]))

    async def endless() -> Any:
        await asyncio.sleep(0)  # time goes on for whoever bounds it
        return {"type": "http.request", "body": b"x" * 1_000, "more_body": True}

    async def told(path: str, folder: Path = tmp_path) -> tuple[int, int]:
        answer: list[Any] = []

        async def send(message: Any) -> None:
            answer.append(message)

        read.clear()
        scope = {"type": "http", "path": path, "headers": []}
        await PageBodies(swallows, config, folder)(scope, endless, send)
        return answer[0]["status"], sum(read)

    config = ServerConfig(body_bytes=4_500, uploads_bytes=9_500)
    assert asyncio.run(told("/gradio_api/queue/join")) == (413, 0)
    assert asyncio.run(told("/gradio_api/upload")) == (413, 9_000)
    config = ServerConfig(body_bytes=4_500, bodies_bytes=2_500, uploads_bytes=9_500)
    assert asyncio.run(told("/gradio_api/queue/join")) == (429, 0)
    assert asyncio.run(told("/gradio_api/upload")) == (413, 9_000)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "picture.png").write_bytes(bytes(3_000))
    config = ServerConfig(uploads_bytes=7_500)
    assert asyncio.run(told("/gradio_api/upload")) == (507, 4_000)
    config = ServerConfig(body_s=0)
    assert asyncio.run(told("/gradio_api/queue/join"))[0] == 408


def test_beside_the_interface_no_file_of_the_server_is_read(engine: Engine, pictures: dict[str, Path]) -> None:
    with served(engine, build(engine)) as url:
        named = {"path": str(pictures["red"]), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [{"text": "What?", "files": [named]}, *CONTROLS.values()], "session_hash": "somebody"}
        called = httpx.post(f"{url}/gradio_api/call/ask", json=body, timeout=60).json()["event_id"]
        told = httpx.get(f"{url}/gradio_api/call/ask/{called}", timeout=60).text
        assert "event: error" in told, told
        assert "event: generating" not in told, told


def test_nothing_is_fetched_for_a_visitor(engine: Engine) -> None:
    asked: list[str] = []
    fetch = httpx.AsyncClient.send
    with served(engine, build(engine)) as url, pytest.MonkeyPatch.context() as patch:

        async def noted(client: httpx.AsyncClient, request: httpx.Request, **given: Any) -> httpx.Response:
            asked.append(str(request.url))
            return await fetch(client, request, **given)

        patch.setattr(httpx.AsyncClient, "send", noted)
        named = {"path": "http://192.0.2.1/picture.png", "meta": {"_type": "gradio.FileData"}}
        body = {"data": [{"text": "What?", "files": [named]}, *CONTROLS.values()], "session_hash": "somebody"}
        called = httpx.post(f"{url}/gradio_api/call/ask", json=body, timeout=60).json()["event_id"]
        told = httpx.get(f"{url}/gradio_api/call/ask/{called}", timeout=60).text
        assert "not fetched from an address" in told
    assert not asked


def test_the_folder_of_uploads_is_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "named" / "tmp_of_another"
    other.parent.mkdir()
    other.write_bytes(b"kept")
    os.utime(other, (0, 0))
    monkeypatch.setenv(VARIABLE, str(other.parent))
    with own_folder():
        folder = Path(os.environ[VARIABLE])
        assert folder.parent == other.parent
        assert bytes_lying(folder) == 0
    assert not folder.exists()
    assert os.environ[VARIABLE] == str(other.parent)
    assert other.exists()
    monkeypatch.setenv(VARIABLE, str(other / "below a file"))
    with pytest.raises(ValueError, match=r"uploads cannot be kept in .*below a file: "), own_folder():
        pass


def test_what_was_uploaded_is_bounded_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.page_bodies.LOOK_S", 0.0)
    with own_uploads() as folder, bounded(engine, build(engine), folder, 3_000_000) as (url, before):
        upload = f"{url}/gradio_api/upload"
        first = httpx.post(upload, files={"files": b"x" * 1_000_000})
        assert first.status_code == 200
        assert bytes_lying(folder) == before + 1_000_000
        refused = httpx.post(upload, files={"files": b"y" * 2_500_000})
        assert (refused.status_code, error_of(refused)["code"]) == (507, "full")
        for path in first.json():
            Path(path).unlink()
        broken = [path for path in folder.iterdir() if path.is_file()]
        assert len(broken) == 1  # what Gradio leaves of an upload that was refused in its midst
        os.utime(broken[0], (0, 0))
        assert httpx.post(upload, files={"files": b"y" * 2_500_000}).status_code == 200
        assert not broken[0].exists()
    assert not folder.exists()


@contextmanager
def bounded(engine: Engine, page: Any, folder: Path, most: int) -> Iterator[tuple[str, int]]:
    """Its address, and how much lies there already: the examples."""
    before = bytes_lying(folder)
    with served(engine, page, uploads_bytes=before + most) as url:
        yield url, before


@contextmanager
def own_uploads() -> Iterator[Path]:
    """As the command gives them a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE)
        with own_folder():
            yield Path(os.environ[VARIABLE])


def test_a_password_closes_the_page(engine: Engine, pictures: dict[str, Path]) -> None:
    with served(engine, build(engine), api_key=PASSWORD[:5], page_password=PASSWORD) as url:
        assert httpx.get(f"{url}/config").status_code == 401
        assert "the user is mm-rwkv7" in httpx.get(url).text
        assert httpx.post(f"{url}/gradio_api/call/ask", json={"data": []}).status_code == 401
        assert httpx.post(f"{url}/gradio_api/upload", files={"files": b"x"}).status_code == 401
        for wrong in ("", "a passwort", PASSWORD[:5]):
            with pytest.raises(Exception, match=r"(?i)could not|credentials|login|auth"):
                PageClient(url, auth=("mm-rwkv7", wrong))
        assert PageClient(url, auth=("mm-rwkv7", PASSWORD)).ask("What?", pictures["red"])
