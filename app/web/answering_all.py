"""One question about many files, side by side in the engine."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine import Engine
from app.media import user_message
from app.requests import Busy, Request, Ticket
from app.web.refusals import without_folder
from app.web.uploads import part_of
from mm_rwkv7.sampling import Sampling

log = logging.getLogger(__name__)

UNREAD = "the model could not read it"
READERS = 2  # files that are decoded at once: a large picture takes 100 MB


@dataclass(frozen=True)
class Answered:
    """A file by its name, and what was answered about it or else what was wrong with it."""

    file: str
    answer: str = ""
    error: str = ""

    @property
    def fields(self) -> dict[str, str]:
        said = {"error": self.error} if self.error else {"answer": self.answer}
        return {"file": self.file, **said}


async def answer_all(
    engine: Engine, files: Sequence[str], question: str, sampling: Sampling
) -> AsyncGenerator[tuple[int, Answered]]:
    """Ask a question about each file, or the one for a description where it is empty: (which file, its answer), in the
    order in which they are done. As many are asked about at once as the engine has slots, and its being busy is waited
    for. Closing the iterator cancels what is under way."""
    slots, readers = asyncio.Semaphore(engine.config.slots), asyncio.Semaphore(READERS)

    async def one(number: int, path: str) -> tuple[int, Answered]:
        name = Path(path).name
        async with slots:
            try:
                async with readers:
                    messages = await asyncio.to_thread(_asking, engine, path, question)
                    ticket = await _submitted(engine, Request(messages, sampling=sampling))
                with ticket:
                    return number, Answered(name, (await ticket.wait()).text)
            except (ValueError, FloatingPointError) as error:
                return number, Answered(name, error=without_folder(str(error), [path]))
            except RuntimeError:  # no memory for it: what torch says of that is not for visitors
                if not engine.alive:
                    raise
                log.exception("%s could not be read", name)
                return number, Answered(name, error=UNREAD)

    tasks = [asyncio.create_task(one(number, path)) for number, path in enumerate(files)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _asking(engine: Engine, path: str, question: str) -> list[dict[str, Any]]:
    template, part = engine.pipeline.model.config.template, part_of(path)
    usual = template.sound_caption if part["type"] == "audio" else template.caption
    return user_message(question.strip() or usual, [part])


async def _submitted(engine: Engine, request: Request) -> Ticket:
    """The request's ticket, however long the engine is busy before."""
    while True:
        submitting = asyncio.ensure_future(asyncio.to_thread(engine.submit, request))
        try:
            return await asyncio.shield(submitting)
        except Busy as busy:
            await asyncio.sleep(busy.retry_after_s)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel)  # the thread cannot be stopped
            raise


def _cancel(submitting: "asyncio.Future[Ticket]") -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
