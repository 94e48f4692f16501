"""Downloads, against a server on this machine that speaks the hub's protocol. The hub's client reads its settings when
it is imported, so they run in processes of their own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret
FILES = {
    "me/small": {"config.json": b"{}", "model.safetensors": b"weights", "notes.txt": b"no", "sub/x.pth": b"no"},
    "me/pile": {"a.pth": b"one", "20B_tokenizer.json": b"{}"},
    "me/many": {"a.pth": b"one", "b.pth": b"two"},
    "me/none": {"README.md": b"nothing here"},
}
FETCH = """
import sys
from mm_rwkv7.hub import fetch
for name in sys.argv[1:]:
    try:
        path = fetch(name)
        print(path.read_text() if path.is_file() else " ".join(sorted(p.name for p in path.iterdir())))
    except ValueError as error:
        print(error)
"""
ARRIVING = {
    "hf:me/small": "config.json model.safetensors",
    "hf:me/small/sub/x.pth": "no",
    "hf:me/pile": "20B_tokenizer.json a.pth",
    "hf:me/many/b.pth": "two",
}
ABSENT = "the hub has no such repository, or it is private (`hf auth login`)"
REFUSED = {
    "hf:me/absent": f"hf:me/absent cannot be fetched: {ABSENT}",
    "hf:me/hid/a": f"hf:me/hid/a cannot be fetched: {ABSENT}",
    "hf:me/small/b.pth": "hf:me/small/b.pth cannot be fetched: the repository has no such file",
    "hf:me/many": "hf:me/many holds 2 models, name one of them: hf:me/many/a.pth, ...",
    "hf:me/none": "hf:me/none holds no model: it has no .safetensors, .pth or .bin file",
    "hf:small": "'hf:small' names no repository, expected 'hf:owner/repo' or 'hf:owner/repo/file'",
    "hf:me/what?": "hf:me/what? cannot be fetched: this cannot be the name of a repository",
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        headers = {"X-Repo-Commit": COMMIT}
        body, status = b"", 404
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if repo not in FILES:
            status, headers["X-Error-Code"] = (401 if repo == "me/hid" else 404), "RepoNotFound"
        elif path.startswith("api/models/"):
            status = 200
            siblings = [{"rfilename": name} for name in FILES[repo]]
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        else:
            file = path.split("/", 4)[4]
            if file in FILES[repo]:
                status, body = 200, FILES[repo][file]
                headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            else:
                headers["X-Error-Code"] = "EntryNotFound"
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(names: Iterable[str], home: Path, **settings: str) -> dict[str, str]:
    """What `fetch` brings for each name, or says."""
    names = list(names)
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | settings
    command = [sys.executable, "-c", FETCH, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def test_repositories_and_files_arrive_once_and_what_cannot_is_one_line(hub: str, tmp_path: Path) -> None:
    assert fetched(ARRIVING | REFUSED, tmp_path, HF_ENDPOINT=hub) == ARRIVING | REFUSED
    offline = fetched([*ARRIVING, "hf:me/new", "hf:me/new/a.pth"], tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    for name in ("hf:me/new", "hf:me/new/a.pth"):
        assert offline.pop(name).startswith(f"{name} cannot be fetched: the hub did not answer"), name
    # The folder keeps every file that was ever fetched of the repository.
    assert offline == ARRIVING | {"hf:me/small": "config.json model.safetensors sub", "hf:me/many/b.pth": "two"}


@pytest.mark.slow  # the hub's client tries again and again
def test_a_hub_that_does_not_answer_is_one_line(hub: str, tmp_path: Path) -> None:
    fetched(["hf:me/pile"], tmp_path, HF_ENDPOINT=hub)
    nobody = "http://127.0.0.1:9"
    found = fetched(["hf:me/pile", "hf:me/new", "hf:me/new/a.pth"], tmp_path, HF_ENDPOINT=nobody)
    assert found.pop("hf:me/pile") == ARRIVING["hf:me/pile"]
    for name, said in found.items():
        assert said.startswith(f"{name} cannot be fetched: the hub did not answer"), name
