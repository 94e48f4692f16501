"""The engine: one thread owns the model and answers everybody's requests.

A working skeleton: one request at a time.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import TypeVar

from app.requests import Busy, Cancelled, Piece, Request, Ticket, wake
from mm_rwkv7.pipeline import Pipeline

Result = TypeVar("Result")


class Engine:
    """`submit` a request for a ticket; `call` runs anything else that needs the model; `close` ends the thread."""

    def __init__(self, pipeline: Pipeline, max_waiting: int = 64) -> None:
        self.pipeline = pipeline
        self.max_waiting = max_waiting
        self._inbox: SimpleQueue[tuple[Request, Ticket] | Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """ValueError for what cannot be read, `Busy` when too many wait. Pictures and sounds are decoded here, in the
        caller's thread: from an event loop, call it by `asyncio.to_thread`."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self._inbox.qsize() >= self.max_waiting:
            raise Busy(1.0)
        ticket = Ticket(lambda: None)
        self._inbox.put((request, ticket))
        return ticket

    def call(self, function: Callable[[Pipeline], Result]) -> "Future[Result]":
        """Run something short on the engine's thread, where nothing else uses the model: tags, an embedding."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self.pipeline))
                except Exception as error:  # noqa: BLE001 - it is the caller's
                    future.set_exception(error)

        self._inbox.put(run)
        return future

    def close(self) -> None:
        """End every request with `Cancelled` and the thread."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while (job := self._inbox.get()) is not None:
            if not isinstance(job, tuple):
                job()
                continue
            request, ticket = job
            try:
                stream = self.pipeline.stream(request.messages, request.sampling, request.state)
                for text in stream:
                    ticket.put(Piece(text))
                    wake([ticket])
                    if ticket.stopped or ticket.cancelled:
                        stream.close()
                ticket.put(Cancelled() if ticket.cancelled else stream.answer)
            except Exception as error:  # noqa: BLE001 - it is the request's
                ticket.put(error)
            wake([ticket])
