"""Replicas under Ray Serve on this machine, of which one is killed while they answer."""

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from app.api.config import ServerConfig
from app.engine import EngineConfig
from app.front import create
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import ask, client_of, listening, until

# Not imported here: what it listens on is said before.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")]

TOKENS = 200  # of an answer
TURNS = 4
SESSIONS = 6


def replicas() -> set[str]:
    """The names of the actors that are alive."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if actor["name"].startswith("SERVE_REPLICA")}


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from app.replicas import CLUSTER, Opened, caller, deploy, remove

    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv(CLUSTER, "1")  # what deploying sets is undone with this
    engine = EngineConfig(slots=4, folder=tmp_path_factory.mktemp("states"))
    handle = deploy(Opened(str(tiny_checkpoint), "cpu", "fp32"), 2, ServerConfig(), engine)
    with listening(create(caller(handle), ServerConfig(), at_once=64)) as url:
        yield url
    remove()
    import ray

    ray.shutdown()
    patch.undo()


def test_ray_listens_on_this_machine_alone(url: str) -> None:
    """But for one port of each replica, which Serve binds everywhere and which wants the cluster's token."""
    import ray

    assert ray.util.get_node_ip_address() == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no other address")
        own = outward.getsockname()[0]
    port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own, port), timeout=10)


def converse(url: str, session: int, rng: random.Random, texts: list[str]) -> list[str]:
    """The answers to a session's questions, each asked after what the last one left; put into `texts` as they come."""
    client, state = client_of(url), {}
    for turn in range(TURNS):
        fields: dict[str, Any] = {
            "model": "model",
            "messages": ask(f"Describe {session} {turn}"),
            "max_tokens": TOKENS,
            "temperature": 1.0,
            "seed": session,
            "extra_body": {"keep_state": True, **state},
            "extra_headers": {"x-session-id": str(session)},
        }
        if rng.random() < 0.6:
            chunks = list(client.chat.completions.create(stream=True, **fields))
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
            last: Any = chunks[-1].choices[0]
        else:
            last = client.chat.completions.create(**fields).choices[0]
            texts.append(last.message.content)
        state = {"state": last.state}
    return texts


def alone(pipeline: Pipeline, session: int) -> list[str]:
    state, texts = None, []
    for turn in range(TURNS):
        answer = pipeline.ask(f"Describe {session} {turn}", sampling=Sampling(TOKENS, 1.0, seed=session), state=state)
        texts.append(answer.text)
        state = answer.state
    return texts


def test_no_session_is_lost_when_a_replica_is_killed(url: str, tiny_checkpoint: Path, seed: int) -> None:
    pipeline = Pipeline.from_pretrained(str(tiny_checkpoint), "cpu", "fp32")
    expected = [alone(pipeline, session) for session in range(SESSIONS)]
    import ray

    before = replicas()
    assert len(before) == 2
    with ThreadPoolExecutor(SESSIONS) as pool:
        texts: list[list[str]] = [[] for _ in range(SESSIONS)]
        asked = [pool.submit(converse, url, i, random.Random(seed + i), texts[i]) for i in range(SESSIONS)]
        until(lambda: all(texts), "everybody has had an answer", 120)
        ray.kill(ray.get_actor(sorted(before)[0], namespace="serve"), no_restart=True)
        assert [answers.result() for answers in asked] == expected, f"seed {seed}"
    until(lambda: len(replicas() - before) == 1, "there is another one in its place", 120)
    assert converse(url, 0, random.Random(seed), []) == expected[0], f"seed {seed}"
