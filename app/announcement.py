"""What a server says on stderr when it begins: what it runs, and where and how it is reached."""

import ipaddress
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from app.engine import Engine
from mm_rwkv7.int8 import Int8Linear
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.weights import DTYPES, INT8

if TYPE_CHECKING:
    from app.models import Models


def address(host: str, port: int) -> str:
    """The base of URLs for clients on this machine of a server that listens there."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if ip.is_unspecified:  # every address: one that can be called
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"http://{ip}:{port}" if ip.version == 4 else f"http://[{ip}]:{port}"


def runs(pipeline: Pipeline) -> str:
    """On which device and in which precision."""
    lm = pipeline.model.lm
    names = {dtype: name for name, dtype in DTYPES.items()}
    rounded = any(isinstance(module, Int8Linear) for module in lm.modules())
    return f"on {pipeline.device} in {INT8 if rounded else names.get(lm.emb.weight.dtype, str(lm.emb.weight.dtype))}"


def models(served: "Engine | Models") -> str:
    """The models by name, and how those run that are open."""
    from app.models import Models, public_name

    if not isinstance(served, Models):
        return f"{public_name(served.pipeline.name)} {runs(served.pipeline)}"
    opened = {name: f" {runs(engine.pipeline)}" for name, engine in served.open.items()}
    return ", ".join(f"{name}{opened.get(name, '')}" for name in served.names)


def announce(what: str, host: str, port: int, ways: Mapping[str, str]) -> None:
    """`ways` in: what each is called, and what comes after the server's address."""
    where = address(host, port)
    told = [f"mm-rwkv7 serves {what}; Ctrl-C ends it", *(f"  {name:8} {where}{rest}" for name, rest in ways.items())]
    print("\n".join(told), file=sys.stderr, flush=True)
