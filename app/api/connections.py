"""Connections that ask for nothing are closed, so that thousands of them keep nobody out."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_S = 20.0  # for a request's head to arrive


class Connection(H11Protocol):
    """Closes itself when no request has begun `PATIENCE_S` after it was made, or after the last answer's end."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._patience is not None:
            self._patience.cancel()

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self in self.connections:  # not another protocol's by now
            self.transport.close()
