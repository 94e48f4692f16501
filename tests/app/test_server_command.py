"""`mm-rwkv7 serve` from its start to its end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.app.servers import ask, client_of, until

KEY = "a key"  # pragma: allowlist secret


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--model", str(tiny_checkpoint)]
    environment = {**os.environ, "MM_RWKV7_API_KEY": KEY}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert server.poll() is None
            try:
                return httpx.get(f"{url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        until(up, "it is up", 120)
        client = client_of(url, KEY)
        assert [model.id for model in client.models.list()] == ["model"]
        answer = client.chat.completions.create(model="model", messages=ask("Describe"))
        assert answer.choices[0].message.content
        assert httpx.get(f"{url}/config").status_code == 401  # the key is the page's password as well
        assert httpx.post(f"{url}/login", data={"username": "mm-rwkv7", "password": KEY}).status_code == 200
        server.send_signal(signal.SIGINT)
        assert server.stderr is not None
        told = server.stderr.read()
        server.wait(60)
    assert f"is on {url}" in told
    assert "Traceback" not in told
