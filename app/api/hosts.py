"""Stands before everything: a request must call the server by a name of its own.

A page from elsewhere can have its own name point at this machine (DNS rebinding), and the browser then lets it talk to
a server here that has no key. It still sends its own name as the Host. Without such a trick it may send what a form
can send, a file for instance, and the browser tells by the Origin where it comes from.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from app.addresses import is_loopback
from app.api.errors import Refused

HARMLESS = ("GET", "HEAD", "OPTIONS")  # nothing is changed by them


class HostCheck:
    """An ASGI middleware. With `hosts` None it lets everything pass."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None) -> None:
        self._app, self._hosts = app, None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hosts is not None and scope["type"] in ("http", "websocket"):
            named = [value for name, value in scope["headers"] if name == b"host"]
            if len(named) != 1 or not self._known(named[0].decode("latin-1")):
                told = "this server is not called that; --allow-host lets it be"
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008, "reason": told})
                else:
                    await Refused(421, told, code="wrong_host").response(scope, receive, send)
                return
            if scope["type"] == "http" and scope["method"] not in HARMLESS and not self._welcome(scope["headers"]):
                told = "a page from elsewhere may not send this; --allow-host lets it"
                await Refused(403, told, code="wrong_origin").response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _welcome(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether it comes from no page, or from a page of this server's or this machine's."""
        origin = dict(headers).get(b"origin", b"app:").decode("latin-1")
        scheme, _, host = origin.partition("://")
        return self._known(host) if scheme in ("http", "https") else origin != "null"  # which any page can be

    def _known(self, host: str) -> bool:
        assert self._hosts is not None
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        name = (name if port.isdigit() else host).lower().removeprefix("[").removesuffix("]")
        return is_loopback(name) or name in self._hosts
