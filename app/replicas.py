"""Replicas of the server under Ray Serve: each has an engine of its own, and all have one folder of states.

Requests come in by `app.front`, in the process that starts the replicas, and reach them by Serve's handles: a session's
requests go to one replica while that is there, and to the next one on the ring when it is not.
"""

import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.types import Message

from app.announcement import announce, runs
from app.api.config import ServerConfig
from app.engine import Engine, EngineConfig
from app.front import Call, Sent, answers
from app.front import create as create_front
from app.models import public_name
from app.rerun import Gone
from app.server import MORE, create, ways
from app.serving import listen
from mm_rwkv7.pipeline import Pipeline

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

NAME = "mm-rwkv7"
CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0", when Ray is imported: it listens on loopback, on Linux as well
OBJECT_STORE = 100 << 20  # bytes; pictures on their way are all that it holds
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@dataclass(frozen=True)
class Opened:
    """What every replica opens."""

    model: str
    device: str
    dtype: str


class Replica:
    """One engine and the same application as `mm-rwkv7 serve` has. The front has looked at the key and the host."""

    def __init__(self, opened: Opened, config: ServerConfig, engine_config: EngineConfig) -> None:
        pipeline = Pipeline.from_pretrained(opened.model, opened.device, opened.dtype)
        self._engine = Engine(pipeline, engine_config)
        self._app = create(self._engine, replace(config, api_key=None, hosts=None))

    async def answer(self, sent: Sent) -> AsyncGenerator[Message, None]:
        async with aclosing(answers(self._app, sent)) as messages:
            async for message in messages:
                yield message

    def runs(self) -> str:
        return runs(self._engine.pipeline)

    def check_health(self) -> None:
        """Serve asks, and replaces a replica that raises."""
        if not self._engine.alive:
            raise RuntimeError("the engine has failed")


def serve(opened: Opened, count: int, host: str, port: int, config: ServerConfig, engine_config: EngineConfig) -> None:
    """Serve the interface by replicas until interrupted."""
    if config.tools:
        raise ValueError("replicas offer no tools to other models: give either --replicas or --mcp")
    handle = deploy(opened, count, config, engine_config)
    import ray

    try:
        at_once = count * (engine_config.slots + engine_config.max_waiting) + MORE
        front = create_front(caller(handle), config, at_once)
        what = f"{count} replicas of {public_name(opened.model)}, the first {handle.runs.remote().result()}"
        announce(what, host, port, ways(config, page=False))
        listen(front, host, port)
    finally:
        remove()
        ray.shutdown()


def deploy(opened: Opened, count: int, config: ServerConfig, engine_config: EngineConfig) -> "DeploymentHandle[Any]":
    """Start that many replicas on the cluster that RAY_ADDRESS names, or on this machine, and wait for them."""
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        os.environ[CLUSTER] = "0"
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not ray.is_initialized():
        _connect()
    resources = ray.cluster_resources()
    on_gpu = opened.device != "cpu" and resources.get("GPU", 0) >= count
    cores = max(1, int(resources.get("CPU", 1)) // count)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    deployment = serve.deployment(
        name=NAME,
        num_replicas=count,
        max_ongoing_requests=engine_config.slots + engine_config.max_waiting + MORE,
        ray_actor_options={"num_cpus": cores, "num_gpus": int(on_gpu)},
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        logging_config={"log_level": "WARNING"},
    )(Replica)
    handle: DeploymentHandle[Any] = serve.run(
        deployment.bind(opened, config, engine_config), name=NAME, route_prefix=None
    )
    return handle


def remove() -> None:
    """End the replicas."""
    from ray import serve

    serve.delete(NAME)


def _connect() -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": "WARNING"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to others
    ray.init("local", object_store_memory=OBJECT_STORE, include_dashboard=False, **quiet)


def caller(handle: "DeploymentHandle[Any]") -> Call:
    """What the front asks replicas by."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    async def call(sent: Sent, session: str) -> AsyncGenerator[Message, None]:
        response = handle.options(stream=True, session_id=session).answer.remote(sent)
        ended = False
        try:
            async for message in response:
                yield message
            ended = True
        except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            ended = True
            raise Gone(type(error).__name__) from error
        finally:
            if not ended:
                response.cancel()

    return call
