"""Where a server listens, who reaches it there, and by which names. It costs nothing: all of it is asked before a
library is imported or a model is loaded."""

import errno
import ipaddress
import socket
from collections.abc import Iterable


def is_loopback(host: str) -> bool:
    """Whether a name or an address is one of this machine alone."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(bound: str, more: Iterable[str] = ()) -> tuple[str, ...] | None:
    """The names that a server bound there is called by, besides this machine's own; None where it may be any: other
    machines reach it, and it is for the key to keep strangers out."""
    more = tuple(host.lower() for host in more)
    return (bound.lower(), *more) if is_loopback(bound) or more else None


def check_exposed(host: str, api_key: str | None, insecure: bool) -> None:
    """ValueError for an address that other machines reach, without a key, unless that is meant."""
    if not (is_loopback(host) or api_key or insecure):
        raise ValueError(
            f"{host} lets other machines in: give --api-key (or MM_RWKV7_API_KEY), or --insecure if anybody may come in"
        )


def check_address(host: str, port: int) -> None:
    """A ValueError unless the address can be listened on; it costs nothing, so ask before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except socket.gaierror as error:
        raise ValueError(
            f"cannot listen on {host}: {error.strerror}; --host takes an address of this machine"
        ) from error
    except OSError as error:
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; {other} takes another") from error
