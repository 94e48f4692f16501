"""Downloads, against a server on this machine that speaks the hub's protocol. The hub's client reads its settings when
it is imported, so they run in processes of their own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "0" * 40, "1" * 40  # commits
INDEX, SHARDS = "model.safetensors.index.json", [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
LISTED = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
FILES = {
    "me/small": {"config.json": b"{}", "model.safetensors": b"weights", "notes.txt": b"no", "sub/x.pth": b"no"},
    "me/pile": {"a.pth": b"one", "20B_tokenizer.json": b"[]", "config.json": b"{}"},
    "me/many": {"a.pth": b"one", "b.pth": b"two"},
    "me/both": {"a.pth": b"one", "model.safetensors": b"two", "x.bin": b"three"},
    "me/none": {"README.md": b"nothing here"},
    "me/shards": {INDEX: LISTED, "config.json": b"{}", **{name: name.encode() for name in SHARDS}, "old.bin": b"no"},
    "me/pair": {"x_visual.pth": b"seen", "x_rwkv.pth": b"said"},
    "me/pairs": {"x_visual.pth": b"seen", "x_rwkv.pth": b"said", "y_visual.pth": b"seen", "y_rwkv.pth": b"said"},
    "me/deep": {f"sub/{name}": content for name, content in {INDEX: LISTED, **dict.fromkeys(SHARDS, b"")}.items()},
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
    "hf:me/pile": "20B_tokenizer.json a.pth config.json",
    "hf:me/many/b.pth": "two",
    "hf:me/shards": " ".join(sorted([*SHARDS, INDEX, "config.json"])),
    "hf:me/pair": "x_rwkv.pth x_visual.pth",
}
ABSENT = "the hub has no such repository, or it is private (`hf auth login`)"
PAIRS = ", ".join(f"hf:me/pairs/{name}" for name in sorted(FILES["me/pairs"]))
REFUSED = {
    "hf:me/absent": f"hf:me/absent cannot be fetched: {ABSENT}",
    "hf:me/hid/a": f"hf:me/hid/a cannot be fetched: {ABSENT}",
    "hf:me/small/b.pth": "hf:me/small/b.pth cannot be fetched: the repository has no such file",
    "hf:me/many": "hf:me/many holds 2 models, name one of them: hf:me/many/a.pth, hf:me/many/b.pth",
    "hf:me/both": "hf:me/both holds 2 models, name one of them: hf:me/both/a.pth, hf:me/both/model.safetensors",
    "hf:me/pairs": f"hf:me/pairs holds 4 models, name one of them: {PAIRS}",
    "hf:me/none": "hf:me/none holds no model: it has no .safetensors, .pth or .bin file",
    f"hf:me/shards/{SHARDS[0]}": f"hf:me/shards/{SHARDS[0]} is one shard of a model: "
    f"name hf:me/shards, or its index, .../{INDEX}",
    "hf:small": "'hf:small' names no repository, expected 'hf:owner/repo' or 'hf:owner/repo/file'",
    "hf:me/what?": "hf:me/what? cannot be fetched: this cannot be the name of a repository",
}


@dataclass
class Hub:
    """A server, the files of each repository by commit, what was asked of it, and how it is: `broken` is the status
    that it answers with to every path that begins with one of `breaks`, 0 means no answer. `after` is called with the
    path of each file that was sent."""

    address: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(
        default_factory=lambda: {repo: {OLD: dict(files)} for repo, files in FILES.items()}
    )
    sent: list[str] = field(default_factory=list)
    broken: int | None = None
    breaks: str = "/"
    after: Callable[[str], None] = lambda path: None
    over: threading.Event = field(default_factory=threading.Event)  # until then nobody is answered

    def push(self, repo: str, files: dict[str, bytes]) -> None:
        """A new commit, which is `main` from now on."""
        self.commits[repo][NEW] = files

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """-> (status, headers, body)."""
        if self.broken is not None and path.startswith(self.breaks):
            if self.broken == 0:
                self.over.wait()
            return self.broken or 200, {}, b"the hub is ill"
        parts = path.strip("/").removeprefix("api/models/").split("/")
        commits = self.commits.get("/".join(parts[:2]))
        if commits is None:
            return (401 if parts[:2] == ["me", "hid"] else 404), {"X-Error-Code": "RepoNotFound"}, b""
        commit = list(commits)[-1] if parts[3] == "main" else parts[3]
        headers = {"X-Repo-Commit": commit}
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if parts[2] == "revision":
            siblings = [{"rfilename": name} for name in commits[commit]]
            return 200, headers, json.dumps({"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings}).encode()
        body = commits[commit].get("/".join(parts[4:]))
        if body is None:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        return 200, headers | {"ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.respond(with_body=False)

        def do_GET(self) -> None:
            self.respond(with_body=True)

        def respond(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            status, headers, body = made.answer(path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)
                if "/resolve/" in path:
                    made.sent.append(path)
                    made.after(path)

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.address = f"http://127.0.0.1:{server.server_port}"
    yield made
    made.over.set()
    server.shutdown()
    server.server_close()


def run(code: str, names: Iterable[str], home: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | settings
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", code, *names]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def fetched(names: Iterable[str], home: Path, hub: Hub, **settings: str) -> tuple[dict[str, str], list[str]]:
    """What `fetch` brings for each name, or says, and the lines on stderr."""
    names = list(names)
    done = run(FETCH, names, home, {"HF_ENDPOINT": hub.address, **settings})
    return dict(zip(names, done.stdout.splitlines(), strict=True)), done.stderr.splitlines()


def test_repositories_and_files_arrive_once_and_what_cannot_is_one_line(hub: Hub, tmp_path: Path) -> None:
    assert fetched(ARRIVING | REFUSED, tmp_path, hub) == (ARRIVING | REFUSED, [])
    sent = [path.removeprefix("/").replace(f"resolve/{OLD}/", "") for path in hub.sent]
    assert sorted(sent) == sorted(
        [f"me/small/{name}" for name in ("config.json", "model.safetensors", "sub/x.pth")]
        + [f"me/pile/{name}" for name in FILES["me/pile"]]
        + [f"me/shards/{name}" for name in (*SHARDS, INDEX, "config.json")]
        + [f"me/pair/{name}" for name in FILES["me/pair"]]
        + ["me/many/b.pth"]
    ), "nothing twice, nothing of what is refused"
    offline, said = fetched([*ARRIVING, "hf:me/new", "hf:me/new/a.pth"], tmp_path, hub, HF_HUB_OFFLINE="1")
    for name in ("hf:me/new", "hf:me/new/a.pth"):
        assert offline.pop(name).startswith(f"{name} cannot be fetched: the hub did not answer"), name
    # The folder keeps every file that was ever fetched of the commit.
    assert offline == ARRIVING | {"hf:me/small": "config.json model.safetensors sub"}
    assert not said, "who asks for offline mode needs no warning"


BESIDE = """
import sys
from mm_rwkv7.hub import fetch
for name in sys.argv[1:]:
    print(*sorted(path.name for path in fetch(name).parent.iterdir()))
"""
BELONGING = (
    ("me/pair", "x_visual.pth", "x_rwkv.pth x_visual.pth"),
    ("me/pair", "x_rwkv.pth", "x_rwkv.pth x_visual.pth"),
    ("me/pairs", "y_rwkv.pth", "y_rwkv.pth y_visual.pth"),
    ("me/small", "model.safetensors", "config.json model.safetensors"),
    ("me/pile", "a.pth", "20B_tokenizer.json a.pth"),
    ("me/pile", "config.json", "config.json"),
    ("me/shards", INDEX, ARRIVING["hf:me/shards"]),
    ("me/deep", f"sub/{INDEX}", " ".join(sorted([*SHARDS, INDEX]))),
)


def test_a_file_brings_what_belongs_to_it(hub: Hub, tmp_path: Path) -> None:
    hub.commits = {f"me/{i}": {OLD: FILES[repo]} for i, (repo, _, _) in enumerate(BELONGING)}
    names = [f"hf:me/{i}/{file}" for i, (_, file, _) in enumerate(BELONGING)]
    found = run(BESIDE, names, tmp_path, {"HF_ENDPOINT": hub.address}).stdout.splitlines()
    for name, beside, (_, _, expected) in zip(names, found, BELONGING, strict=True):
        assert beside == expected, name


def test_all_files_of_a_fetch_are_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    """Somebody pushes when the first file has been sent."""
    hub.after = lambda path: hub.push("me/small", {"config.json": b"[]", "model.safetensors": b"newer"})
    assert fetched(["hf:me/small"], tmp_path, hub)[0] == {"hf:me/small": ARRIVING["hf:me/small"]}
    assert set(hub.sent) == {f"/me/small/resolve/{OLD}/{name}" for name in ("config.json", "model.safetensors")}
    hub.after = lambda path: None
    files = {"hf:me/small/config.json": "[]", "hf:me/small/model.safetensors": "newer"}
    assert fetched(files, tmp_path, hub)[0] == files
    # Without a hub the cache answers as after a download of `main`, to others too.
    get = "from huggingface_hub import hf_hub_download as get; print(open(get('me/small', 'config.json')).read())"
    assert run(get, [], tmp_path, {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "1"}).stdout == "[]\n"


def test_a_hub_that_is_ill_is_one_warning_where_there_is_a_cache(hub: Hub, tmp_path: Path) -> None:
    names = ["hf:me/pair", "hf:me/pile/a.pth"]
    fetched(names, tmp_path, hub)
    hub.broken = 503
    found, said = fetched([*names, "hf:me/new"], tmp_path, hub)
    absent = "cannot be fetched: the hub answered 503, and it was not downloaded before"
    assert found == {
        "hf:me/pair": ARRIVING["hf:me/pair"],
        "hf:me/pile/a.pth": "one",
        "hf:me/new": f"hf:me/new {absent}",
    }
    assert said == [f"{name}: the hub answered 503; {OLD[:12]}, downloaded before, is used" for name in names]
    hub.broken = 0
    found, said = fetched(["hf:me/pair"], tmp_path, hub, HF_HUB_ETAG_TIMEOUT="1")
    assert found == {"hf:me/pair": ARRIVING["hf:me/pair"]}
    assert [line.partition(";")[0] for line in said] == ["hf:me/pair: the hub did not answer (ReadTimeout)"]
    hub.address = "http://127.0.0.1:9"
    found, said = fetched(["hf:me/pair", "hf:me/new/a.pth"], tmp_path, hub)
    assert found.pop("hf:me/pair") == ARRIVING["hf:me/pair"]
    assert found["hf:me/new/a.pth"].startswith("hf:me/new/a.pth cannot be fetched: the hub did not answer")
    assert len(said) == 1


def test_what_the_hub_refuses_is_not_taken_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    fetched(["hf:me/small", "hf:me/pile/a.pth"], tmp_path, hub)
    del hub.commits["me/small"]
    hub.push("me/pile", {"b.pth": b"other"})
    names = {"hf:me/small": ABSENT, "hf:me/pile/a.pth": "the repository has no such file"}
    found, said = fetched(names, tmp_path, hub)
    assert found == {name: f"{name} cannot be fetched: {reason}" for name, reason in names.items()}
    assert not said


@pytest.mark.slow  # the hub's client tries again and again
def test_a_download_that_breaks_off_leaves_the_commit_before_it(hub: Hub, tmp_path: Path) -> None:
    fetched(["hf:me/small"], tmp_path, hub)
    hub.push("me/small", {"config.json": b"[]", "model.safetensors": b"newer"})
    hub.broken, hub.breaks = 503, f"/me/small/resolve/{NEW}/model"
    found, said = fetched(["hf:me/small"], tmp_path, hub)
    assert found == {"hf:me/small": ARRIVING["hf:me/small"]}
    assert said[-1] == f"hf:me/small: the hub answered 503; {OLD[:12]}, downloaded before, is used"
    names = ["hf:me/small/config.json", "hf:me/small/model.safetensors"]
    found, _ = fetched(names, tmp_path, hub, HF_HUB_OFFLINE="1")
    assert found == dict(zip(names, ("{}", "weights"), strict=True))


def test_a_file_of_an_older_commit_is_found_and_one_of_another_branch_is_not(hub: Hub, tmp_path: Path) -> None:
    fetched(["hf:me/many/a.pth"], tmp_path, hub)
    hub.push("me/many", {"b.pth": b"newer"})
    fetched(["hf:me/many/b.pth"], tmp_path, hub)
    branch = tmp_path / "hub" / "models--me--many" / "snapshots" / ("2" * 40)
    branch.mkdir()
    (branch / "c.pth").write_bytes(b"of a branch")
    (branch.parents[1] / "refs" / "try").write_text(branch.name)
    names = ["hf:me/many/a.pth", "hf:me/many/b.pth", "hf:me/many/c.pth"]
    found, _ = fetched(names, tmp_path, hub, HF_HUB_OFFLINE="1")
    assert found.pop("hf:me/many/c.pth").endswith("it was not downloaded before")
    assert found == {"hf:me/many/a.pth": "one", "hf:me/many/b.pth": "newer"}
