"""What the server refuses, and how it says so: hostile media, wrong bodies, wrong keys, impatience."""

import asyncio
import io
import json
import random
import resource
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from pydantic import ValidationError

from app.addresses import allowed_hosts, check_exposed
from app.api.config import ServerConfig
from app.api.connections import Connection
from app.api.schema import ChatBody, CompletionBody, EmbeddingBody, StateBody
from app.api.structure import BINARY
from app.cli import main
from app.engine import Engine, EngineConfig
from app.server import create
from mm_rwkv7.pipeline import Pipeline
from tests.app.servers import JSON, ask, audio, client_of, error_of, image, image_at, png, post, served, until, wav

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.fixture(scope="module")
def engine(listening_model: Any) -> Iterator[Engine]:
    with Engine(Pipeline(listening_model, "/home/someone/listening"), EngineConfig(slots=4)) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with served(engine, pixels=10_000, sound_s=30.0, media=3) as url:
        yield url


def chat(url: str, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {"model": "listening", "messages": ask("Describe", *parts), "max_tokens": 1, **fields}
    return post(url, "chat/completions", body)


def bomb() -> bytes:
    """A PNG whose header announces more pixels than anybody has memory for."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + png()[33:]


def text_bomb() -> bytes:
    """A small PNG with a comment that unpacks to 64 MB."""
    chunk = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9)
    whole = png()
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return whole[:33] + packed + whole[33:]


def silence(seconds: int) -> bytes:
    """A FLAC file a thousand times smaller than its samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * 8000), 8000, format="FLAC")
    return buffer.getvalue()


def test_what_is_allowed_passes(url: str) -> None:
    assert chat(url, image(png(size=(100, 100))), audio(wav(2.0))).status_code == 200
    assert chat(url, image(png(form="WEBP"), "image/webp"), image(png(form="GIF"), "image/gif")).status_code == 200


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (image(bomb()), "larger than 10,000 pixels"),
        (image(png(size=(101, 100))), "101 x 100 pixels, expected at most 10,000"),
        (image(SVG, "image/svg+xml"), "expected one of image/png"),
        (image(SVG), "said to be image/png and is not"),
        (image(png(form="JPEG")), "said to be image/png and is not"),
        (image(wav()), "said to be image/png and is not"),
        (image(b"%PDF-1.4\n" + png()), "said to be image/png and is not"),
        (image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "said to be image/png and is not"),
        (image(b"<html>" + png(), "text/html"), "expected one of image/png"),
        (image(text_bomb()), "said to be image/png and is not"),
        (image(png()[:60]), "broken or cut short"),
        (image(b""), "empty"),
        (image_at("data:image/png," + "a" * 9), "not in base64"),
        (image_at("data:image/png;base64,@@@@"), "not in base64"),
        (image_at("/etc/passwd"), "a picture is a data URI"),
        (image_at("file:///etc/passwd"), "a picture is a data URI"),
        (image_at("http://169.254.169.254/latest/meta-data"), "not one that this server fetches from"),
        (image_at("https://example.com/a.png"), "not one that this server fetches from"),
        (audio(silence(31)), "said to be wav and is FLAC"),
        (audio(silence(31), "flac"), "longer than 30 s"),
        (audio(png()), "said to be wav and cannot be read"),
        (audio(b"RIFF"), "said to be wav and cannot be read"),
        ({"type": "input_audio", "input_audio": {"data": "/etc/passwd", "format": "wav"}}, "not in base64"),
    ],
)
def test_hostile_media_are_refused(url: str, part: dict[str, Any], told: str) -> None:
    response = chat(url, part)
    assert response.status_code == 400
    error = error_of(response)
    assert told in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] in ("messages", f"messages[0].content[0].{part['type']}.{_holding(part)}")


def _holding(part: dict[str, Any]) -> str:
    return "url" if part["type"] == "image_url" else "data"


def test_no_more_media_than_the_server_takes(url: str) -> None:
    assert "at most 3" in error_of(chat(url, *[image(png())] * 4))["message"]


class _Pictures(BaseHTTPRequestHandler):
    """A host with a picture, and with a way out to elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/a.png" else 302)
        self.send_header("Content-Type", "image/png")
        self.send_header("Location", "/a.png")
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *_: Any) -> None:
        pass


def test_listed_origins_are_fetched_from_and_lead_nowhere_else(engine: Engine) -> None:
    host = HTTPServer(("127.0.0.1", 0), _Pictures)
    Thread(target=host.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{host.server_port}"
    with served(engine, fetch_from=(origin,)) as url:
        assert chat(url, image_at(f"{origin}/a.png")).status_code == 200
        assert "answered 302" in error_of(chat(url, image_at(f"{origin}/elsewhere")))["message"]
        for other in (f"http://127.0.0.1:{host.server_port + 1}/a.png", f"{origin}@example.com/a.png", "http://[/"):
            assert "address" in error_of(chat(url, image_at(other)))["message"]
    host.shutdown()
    host.server_close()


@pytest.mark.parametrize("origin", ["example.com", "ftp://example.com", "https://example.com/path", "https://"])
def test_only_origins_can_be_listed(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        ServerConfig(fetch_from=(origin,))


def said(*content: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, *content]},
        ]
    }


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"model": "gpt"}, "model", "there is no model 'gpt'"),
        ({"model": 3}, "model", "model is 3, expected a string"),
        ({"messages": []}, "messages", "messages is a list of 0, expected at least 1"),
        ({"messages": "hi"}, "messages", "messages is 'hi', expected a list"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is missing"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "is 'tool', expected 'system', 'developer'",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "is 5, expected a string or a list"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "the question is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "expected 'user'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "half a surrogate pair"),
        ({"\ud800": 1}, None, "half a surrogate pair"),
        (said({"type": "video"}), "messages[1].content[1].type", "is 'video', expected one of 'text', 'image_url'"),
        (said({"text": "x"}), "messages[1].content[1].type", "is missing"),
        (said({"type": "image_url"}), "messages[1].content[1].image_url", "is missing"),
        (
            said({"type": "image_url", "image_url": "a"}),
            "messages[1].content[1].image_url",
            "is 'a', expected an object",
        ),
        (
            said({"type": "input_audio", "input_audio": {"data": "", "format": "m4a"}}),
            "messages[1].content[1].input_audio.format",
            "is 'm4a', expected 'wav', 'mp3', 'flac' or 'ogg'",
        ),
        (
            said({"type": "input_audio", "input_audio": {"data": ""}}),
            "messages[1].content[1].input_audio.format",
            "is null, expected 'wav', 'mp3', 'flac' or 'ogg'",
        ),
        ({"temperature": 3}, "temperature", "temperature is 3, expected at most 2"),
        ({"temperature": "warm"}, "temperature", "temperature is 'warm', expected a number"),
        ({"max_tokens": 0}, "max_tokens", "expected at least 1"),
        ({"max_tokens": 10**9}, "max_tokens", "expected at most"),
        ({"n": 100}, "n", "expected at most 8"),
        ({"seed": 1 << 64}, "seed", "expected less than"),
        ({"stop": ["x"] * 17}, "stop", "stop is a list of 17, expected at most 16"),
        ({"stop": "x" * 257}, "stop", "expected at most 256 characters"),
        ({"stop": [5]}, "stop[0]", "stop[0] is 5, expected a string"),
        ({"state": "state_0"}, "state", "there is no such state"),
        ({"tool_choice": "required"}, "tool_choice", "expected 'none' or 'auto'"),
        ({"temprature": 1}, "temprature", "there is no such field"),
        ({"x" * 9999: 1}, "x" * 200, "xxx"),
    ],
)
def test_wrong_fields_are_named(url: str, fields: dict[str, Any], param: str | None, told: str) -> None:
    body = {"model": "listening", "messages": ask("Describe"), **fields}
    response = httpx.post(f"{url}/v1/chat/completions", content=json.dumps(body).encode(), headers=JSON)
    assert 400 <= response.status_code < 500
    error = error_of(response)
    assert error["param"] == param
    assert told in error["message"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ChatBody, {"messages": [0] * 10_000}),
        (ChatBody, {"messages": [{"role": "user", "content": [0] * 10_000}]}),
        (ChatBody, {"messages": ask("a"), "stop": [0] * 10_000}),
        (ChatBody, {"messages": ask("a"), "modalities": [0] * 10_000}),
        (ChatBody, {"messages": ask("a"), **{f"x{i}": 0 for i in range(10_000)}}),
        (ChatBody, {"messages": [{"role": "user", "content": "a", **{f"x{i}": 0 for i in range(10_000)}}]}),
        (ChatBody, {"messages": ask("a"), "logit_bias": {f"x{i}": "a" for i in range(10_000)}}),
        (CompletionBody, {"prompt": [0, *["a"] * 10_000]}),
        (CompletionBody, {"prompt": [[0, *["a"] * 10_000]]}),
        (EmbeddingBody, {"input": [None] * 10_000}),
        (StateBody, {"messages": [0] * 10_000}),
    ],
)
def test_ten_thousand_faults_are_not_looked_for(body: Any, fields: dict[str, Any]) -> None:
    """Each would take a kilobyte, and a body holds millions."""
    with pytest.raises(ValidationError) as refused:
        body.model_validate({"model": "a", **fields})
    assert refused.value.error_count() < 10


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"model": NaN}', "application/json", 400),
        (b"{}", "text/plain", 400),
        (b"x" * 5_000, "application/json", 413),
    ],
)
def test_what_is_no_body_is_refused(engine: Engine, data: bytes, kind: str, status: int) -> None:
    with served(engine, body_bytes=4_000 if status == 413 else 1 << 20) as url:
        response = httpx.post(f"{url}/v1/chat/completions", content=data, headers={"content-type": kind})
        chunked = httpx.post(f"{url}/v1/chat/completions", content=iter([data]), headers={"content-type": kind})
    assert (response.status_code, chunked.status_code) == (status, status)
    error_of(response)


def test_unknown_routes_and_methods(url: str) -> None:
    assert error_of(httpx.get(f"{url}/v1/nothing"))["type"] == "not_found_error"
    wrong = httpx.get(f"{url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    error_of(wrong)


def test_a_model_is_not_named_by_its_path(url: str) -> None:
    for path in ("v1/models", "healthz", "metrics"):
        assert "someone" not in httpx.get(f"{url}/{path}").text


def test_only_the_key_opens(engine: Engine) -> None:
    with served(engine, api_key="a secret") as url:  # pragma: allowlist secret
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "a secret"},
            {"Authorization": "Bearer"},
        ):
            for path in ("v1/models", "metrics", "v1/nothing"):
                refused = httpx.get(f"{url}/{path}", headers=headers)
                assert refused.status_code == 401, (headers, path)
                assert error_of(refused)["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client_of(url, "wrong").models.list()
        assert client_of(url, "a secret").models.list().data
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        assert "mm_rwkv7_slots 4.0" in httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer a secret"}).text


def test_who_sends_too_slowly_is_let_go(engine: Engine) -> None:
    with served(engine, body_s=0.2) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_bodies_take_no_more_memory_together_than_they_may(engine: Engine) -> None:
    body = json.dumps({"model": "listening", "input": "a", "user": "x" * 600}).encode()
    with served(engine, bodies_bytes=1_000) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as first:
            first.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 700\r\n\r\n" + b" " * 600)
            until(
                lambda: httpx.post(f"{url}/v1/embeddings", content=body, headers=JSON).status_code == 429, "it is full"
            )
        until(lambda: httpx.post(f"{url}/v1/embeddings", content=body, headers=JSON).status_code == 200, "it is not")
        for _ in range(3):
            assert httpx.post(f"{url}/v1/embeddings", content=body, headers=JSON).status_code == 200


def test_who_asks_for_nothing_is_let_go(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made, begin = [], Connection.connection_made

    def impatient(self: Connection, transport: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if len(made) < 100:  # those that are idle, not the one that asks
                patch.setattr("app.api.connections.PATIENCE_S", 0.2)
            begin(self, transport)
        made.append(self)

    def closed(connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:  # it was before the words came
            return True

    monkeypatch.setattr(Connection, "connection_made", impatient)
    with served(engine) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(100)]
        idle[0].sendall(b"GET /v1/mod")  # and no more
        until(lambda: len(made) == 100, "the server has them all")
        assert httpx.get(f"{url}/v1/models").status_code == 200
        assert all(map(closed, idle))
        for connection in idle:
            connection.close()


IDLE = """
import resource, socket, sys
port, many = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (many + 100,) * 2)
idle = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(many)]
for connection in idle[::3]:
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\n")  # and no more
print("open", flush=True)
sys.stdin.read()
for connection in idle:
    connection.sendall(b"x")  # fails if it was closed
"""


@pytest.mark.slow
def test_ten_thousand_idle_connections_keep_nobody_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    many = 10_000
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < many + 1000:
        pytest.skip(f"this machine lets a process have {before[1]} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    monkeypatch.setattr("app.api.connections.PATIENCE_S", 600.0)
    try:
        with served(engine) as url:
            command = [sys.executable, "-c", IDLE, url.rpartition(":")[2], str(many)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as idle:
                assert idle.stdin is not None
                assert idle.stdout is not None
                assert idle.stdout.readline() == "open\n"
                assert chat(url).status_code == 200
                assert httpx.get(f"{url}/healthz").status_code == 200
                idle.stdin.close()
            assert idle.returncode == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_json_than_can_be_parsed_at_once_is_refused_unparsed(engine: Engine) -> None:
    kept = {"model": "listening", "max_tokens": 1}
    cases: list[tuple[dict[str, Any], int]] = [
        ({"prompt": "a", "user": {str(i): 0 for i in range(21)}}, 413),
        ({"prompt": [1] * 41}, 413),
        ({"prompt": [[]] * 41}, 413),
        ({"prompt": ["\\"] * 41}, 413),
        ({"prompt": "\\", "user": [0] * 41}, 413),
        ({"prompt": '\\"', "user": [0] * 41}, 413),
        ({"prompt": 'a,[{:"\\' * 41}, 200),
        ({"prompt": ["a"] * 20}, 200),
    ]
    with served(engine, json_keys=20, json_values=40) as url:
        for body, status in cases:
            answer = post(url, "completions", {**kept, **body})
            assert answer.status_code == status, (body, answer.text)
            if status == 413:
                assert error_of(answer)["code"] == "too_large"
                assert "20 keys and 40 values" in error_of(answer)["message"]
        broken = httpx.post(f"{url}/v1/completions", content=b"[," * 41, headers=JSON)
        assert broken.status_code == 413  # nobody has looked whether it is JSON
        file = httpx.post(f"{url}/v1/states/import", content=b"[," * 41, headers={"content-type": BINARY})
        assert file.status_code == 400


@pytest.mark.parametrize(
    ("host", "key", "insecure", "fine"),
    [
        ("127.0.0.1", None, False, True),
        ("localhost", None, False, True),
        ("::1", None, False, True),
        ("0.0.0.0", None, False, False),
        ("::", None, False, False),
        ("192.168.0.7", None, False, False),
        ("example.com", None, False, False),
        ("0.0.0.0", "key", False, True),
        ("0.0.0.0", None, True, True),
    ],
)
def test_nobody_is_let_in_by_accident(host: str, key: str | None, insecure: bool, fine: bool) -> None:
    if fine:
        check_exposed(host, key, insecure)
    else:
        with pytest.raises(ValueError, match="lets other machines in"):
            check_exposed(host, key, insecure)


def test_the_command_refuses_to_be_exposed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--host", "0.0.0.0"]) == 2
    assert "0.0.0.0 lets other machines in" in capsys.readouterr().err
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--insecure" in capsys.readouterr().err
    assert main(["serve", "--fetch-from", "example.com"]) == 2
    assert "is no origin" in capsys.readouterr().err


def test_the_command_says_what_an_option_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (tmp_path / "file").write_text("")
    missing = {"ray", "mcp"}
    monkeypatch.setattr("app.serve_commands.find_spec", lambda name: None if name in missing else name)
    for options, told in (
        (["--mcp"], "mm-rwkv7[serve,mcp]"),
        (["--replicas", "2", "--states", str(tmp_path)], "mm-rwkv7[serve,ray]"),
        (["--states", str(tmp_path / "file")], "states cannot be kept in"),
    ):
        assert main(["serve", "--port", port, *options]) == 2
        assert told in capsys.readouterr().err
    missing.clear()
    assert main(["serve", "--port", port, "--replicas", "2"]) == 2
    assert "give --states DIR" in capsys.readouterr().err


def test_bodies_at_random_never_break_it(url: str, engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    with httpx.Client(base_url=f"{url}/v1/", timeout=60) as client:
        accepted = 0
        for number in range(400):
            path = rng.choice(["chat/completions", "completions", "embeddings", "states"])
            body = _mutated(_body(path), rng)
            data = json.dumps(body).encode()
            response = client.post(path, content=data, headers=JSON)
            assert response.status_code < 500, f"seed {seed}, body {number}: {data[:500]!r}"
            accepted += response.status_code == 200
            if response.status_code >= 400:
                error_of(response)
    assert 20 < accepted < 380, f"seed {seed}: the bodies are all wrong or all right"
    assert engine.alive
    assert chat(url).status_code == 200


def _body(path: str) -> dict[str, Any]:
    few = {"model": "listening", "max_tokens": 2}
    if path == "chat/completions":
        parts = (image(png()), audio(wav(0.1)))
        return {**few, "messages": ask("Describe", *parts), "stream": False, "n": 1, "stop": ["x"], "logprobs": True}
    if path == "completions":
        return {**few, "prompt": ["a red", [1, 2]], "echo": True, "logprobs": 2, "seed": 1, "temperature": 0.5}
    if path == "embeddings":
        return {"model": "listening", "input": ["a", [3]], "encoding_format": "float"}
    return {"messages": ask("Describe", image(png()))}


def _mutated(value: Any, rng: random.Random) -> Any:
    """The same with some of its leaves, keys and items changed, gone or doubled."""
    if rng.random() < 0.03:
        return _anything(rng)
    if isinstance(value, dict):
        kept = {key: _mutated(item, rng) for key, item in value.items() if rng.random() < 0.97}
        if rng.random() < 0.05:
            kept[rng.choice(["x", "model", "state", "stream", "type", "content", "\ud800"])] = _anything(rng)
        return kept
    if isinstance(value, list):
        return [_mutated(item, rng) for item in value for _ in range(rng.choice([0, 1, 1, 1, 1, 2]))]
    if isinstance(value, str) and rng.random() < 0.1:
        cut = rng.randrange(len(value) + 1)
        return value[:cut] + rng.choice(["", "\x00", "\ud83d", "é", "data:", "User:", "\n\n", " " * 99]) + value[cut:]
    return value


def _anything(rng: random.Random) -> Any:
    huge = [1 << 62, -1, 1e308, float("nan"), float("inf"), 10**400]
    plain = [None, True, 0, 1, -0.5, "", "listening", "\udfff", [], {}, [[]], {"type": "text"}, [None], "a" * 5000]
    return rng.choice(huge + plain)


@pytest.mark.parametrize(
    ("bound", "more", "named", "fine"),
    [
        ("127.0.0.1", [], "127.0.0.1:8000", True),
        ("127.0.0.1", [], "localhost:8000", True),
        ("127.0.0.1", [], "LOCALHOST", True),
        ("127.0.0.1", [], "127.1.2.3", True),
        ("::1", [], "[::1]:8000", True),
        ("::1", [], "[::1]", True),
        ("127.0.0.1", [], "evil.example:8000", False),
        ("127.0.0.1", [], "127.0.0.1.evil.example", False),
        ("127.0.0.1", [], "evil.example:127.0.0.1", False),
        ("127.0.0.1", [], "", False),
        ("127.0.0.1", [], "192.168.0.7", False),
        ("127.0.0.1", ["Mine.example"], "mine.example:443", True),
        ("127.0.0.1", ["mine.example"], "evil.example", False),
        ("0.0.0.0", [], "anything.example", True),
        ("0.0.0.0", ["mine.example"], "evil.example", False),
        ("0.0.0.0", ["mine.example"], "mine.example", True),
    ],
)
def test_a_server_is_called_by_its_own_names(
    engine: Engine, bound: str, more: list[str], named: str, fine: bool
) -> None:
    app = create(engine, ServerConfig(hosts=allowed_hosts(bound, more)))

    async def asked(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.get(path, headers={"Host": named})

    for path in ("/v1/models", "/healthz", "/metrics"):
        response = asyncio.run(asked(path))
        assert response.status_code == (200 if fine else 421)
        if not fine:
            assert error_of(response)["code"] == "wrong_host"


@pytest.mark.parametrize(
    ("origin", "fine"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8000", True),
        ("https://mine.example", True),
        ("app://desktop", True),
        ("https://evil.example", False),
        ("http://127.0.0.1.evil.example:8000", False),
        ("null", False),
    ],
)
def test_a_page_from_elsewhere_sends_nothing(engine: Engine, origin: str, fine: bool) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    with served(engine, hosts=allowed_hosts("127.0.0.1", ["mine.example"])) as url:
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        sent = httpx.post(f"{url}/v1/states/import", content=b"a state", headers=headers)
        assert sent.status_code == (400 if fine else 403)
        assert fine or error_of(sent)["code"] == "wrong_origin"
    with served(engine) as url:  # other machines reach it: the key keeps strangers out
        assert httpx.post(f"{url}/v1/states/import", content=b"a state", headers=headers).status_code == 400


def test_no_other_origin_may_read_answers(url: str) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    asked = httpx.options(f"{url}/v1/chat/completions", headers=headers)
    found = httpx.get(f"{url}/v1/models", headers=headers)
    assert not [name for name in (*asked.headers, *found.headers) if name.startswith("access-control")]
