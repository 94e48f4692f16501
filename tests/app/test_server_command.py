"""`mm-rwkv7 serve` from its start to its end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.app.servers import ask, client_of, until

KEY = "a key"  # pragma: allowlist secret


@contextmanager
def serving(folder: Path, port: int, *options: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """The command as a process that answers by now; it is killed if it has not ended by itself."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), *map(str, options)]
    environment = {**os.environ, "MM_RWKV7_API_KEY": KEY, "GRADIO_TEMP_DIR": str(folder)}

    def up() -> bool:
        assert server.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            until(up, "it is up", 120)
            yield server
        finally:
            server.kill()


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted_and_the_next_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--model", tiny_checkpoint, "--states", tmp_path / "states")
    url = f"http://127.0.0.1:{port}"
    client = client_of(url, KEY)
    with serving(tmp_path, port, *options) as server:
        assert [model.id for model in client.models.list()] == ["model"]
        kept = {"keep_state": True}
        first = client.chat.completions.create(model="model", messages=ask("Describe"), extra_body=kept).choices[0]
        assert first.message.content
        goes_on = {"model": "model", "messages": ask("a red square"), "extra_body": {"state": first.state}}
        expected = client.chat.completions.create(**goes_on)
        assert httpx.get(f"{url}/config").status_code == 401  # the key is the page's password as well
        assert httpx.post(f"{url}/login", data={"username": "mm-rwkv7", "password": KEY}).status_code == 200
        server.send_signal(signal.SIGINT)
        assert server.stderr is not None
        told = server.stderr.read()
        server.wait(60)
    assert "mm-rwkv7 serves model on cpu in fp32" in told
    assert f"clients  {url}/v1, with the API key as bearer token" in told
    assert f"page     {url}/, for the user mm-rwkv7 with the page's password" in told
    assert KEY not in told
    assert "Traceback" not in told
    assert not list(tmp_path.glob("mm-rwkv7-*"))
    with serving(tmp_path, port, *options) as server:
        found = client.chat.completions.create(**goes_on)
        assert list(tmp_path.glob("mm-rwkv7-*"))  # where uploads lie
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("mm-rwkv7-*"))
    assert found.choices[0].message.content == expected.choices[0].message.content
