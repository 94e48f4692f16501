"""The engine: one thread owns the model and answers everybody's requests, side by side.

A turn of its loop gives free slots to those who wait, encodes some pictures and sounds, reads a bounded portion of
prompts and writes one token of every answer. A text's state lies in the slot of a pool while it is worked on; before
and after that it is a value.

Letters: B rows, T time, D width, V vocabulary.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from app.choosing import score
from app.media_encoder import MediaEncoder
from app.prompts import prepare
from app.requests import Busy, Cancelled, Expired, Piece, Request, Ticket, wake
from app.row import Row
from app.scheduler import Scheduler
from app.state_cache import StateCache
from mm_rwkv7.generate import Writer
from mm_rwkv7.pipeline import Answer, Pipeline, Timings, Usage
from mm_rwkv7.pooled_decode import pooled_step, read
from mm_rwkv7.sampler import Sampler, choose
from mm_rwkv7.state import State

Result = TypeVar("Result")
MB = 1 << 20
STRIDE = 16  # prompts are padded to multiples of it: oneDNN compiles every size of product anew, and keeps them all


@dataclass(frozen=True)
class EngineConfig:
    """`slots` texts are worked on at once and `max_waiting` wait for one. A turn reads at most `portion` ids while
    answers are being written, and `idle_portion` while none is. Bounds of caches are bytes; states are kept on disk
    only where there is a `folder`."""

    slots: int = 32
    max_waiting: int = 64
    portion: int = 256
    idle_portion: int = 1024
    media_bytes: int = 256 * MB
    device_states: int = 1024 * MB
    ram_states: int = 1024 * MB
    disk_states: int = 8192 * MB
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 1 if name in ("slots", "portion", "idle_portion") else 0
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")


@dataclass
class Counts:
    """What an engine has done since it began: requests by how they ended, tokens, and seconds in which it worked."""

    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    tokens_read: int = 0
    tokens_recalled: int = 0
    tokens_written: int = 0
    busy_s: float = 0.0


class Engine:
    """`submit` a request for a ticket; `call` runs anything else that needs the model; `close` ends the thread.

    All of it may be called from any thread. The pipeline belongs to the engine until that is closed.
    """

    def __init__(self, pipeline: Pipeline, config: EngineConfig = EngineConfig()) -> None:
        self.pipeline, self.config = pipeline, config
        self.counts = Counts()
        self.scheduler = Scheduler(config.slots)
        self.media = MediaEncoder(pipeline, config.media_bytes)
        folder = None if config.folder is None else config.folder / pipeline.fingerprint[:16]
        self.states = StateCache(pipeline.device, config.device_states, config.ram_states, folder, config.disk_states)
        self._step = pooled_step(pipeline.model.lm, config.slots)
        self._unwritable = torch.tensor(list(pipeline.tokenizer.unwritable), dtype=torch.long, device=pipeline.device)
        self._inbox: SimpleQueue[Row | Callable[[], None] | None] = SimpleQueue()
        self._arriving = 0  # submitted, and not seen by the thread yet
        self._lock = threading.Lock()
        self._closing = False
        self._failure: BaseException | None = None
        self._told: dict[Ticket, None] = {}  # who was given something in this turn
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """ValueError for what cannot be read, `Busy` when too many wait. Pictures and sounds are decoded here, in the
        caller's thread: from an event loop, call it by `asyncio.to_thread`."""
        with self._lock:
            self._check()
            if len(self.scheduler.waiting) + self._arriving >= self.config.max_waiting + self.scheduler.free:
                raise Busy(self.scheduler.retry_after())
            self._arriving += 1
        try:
            row = self._row(request)
        except BaseException:
            with self._lock:
                self._arriving -= 1
            raise
        with self._lock:
            if self._closing:
                raise RuntimeError("the engine is closed") from self._failure
            self._inbox.put(row)
        return row.ticket

    def call(self, function: Callable[[Pipeline], Result]) -> "Future[Result]":
        """Run something short on the engine's thread, where nothing else uses the model: tags, an embedding."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self.pipeline))
                except Exception as error:  # noqa: BLE001 - it is the caller's
                    future.set_exception(error)

        with self._lock:
            self._check()
            self._inbox.put(run)
        return future

    @property
    def alive(self) -> bool:
        """Whether it takes requests: it was not closed, and its thread has not failed."""
        return not self._closing

    def close(self) -> None:
        """End every request with `Cancelled`, then the thread; with a folder, write the states that are known there."""
        with self._lock:
            self._closing = True
        self._inbox.put(None)
        self._thread.join()
        self.states.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._closing:
            raise RuntimeError("the engine is closed") from self._failure

    def _row(self, request: Request) -> Row:
        pipeline, sampling = self.pipeline, request.sampling
        if request.state is not None:
            pipeline.model.lm.check_state(request.state, 1)
            request = replace(request, state=pipeline.own(request.state))
        prompt = prepare(pipeline, self.media, request)
        if prompt.places and self.config.folder is not None:
            useful = prompt.places[:-1] if request.write else prompt.places  # a file does not hold what the head reads
            self.states.warm([place.key for place in reversed(useful)], pipeline.fingerprint)
        stop = () if request.text is not None else pipeline.model.config.template.stop
        limit = sampling.max_new_tokens or pipeline.model.config.max_new_tokens
        writer = Writer(pipeline.tokenizer, (*stop, *sampling.stop), limit)
        greedy = not (sampling.temperature or sampling.presence_penalty or sampling.count_penalty)
        sampler = None if greedy else Sampler(sampling, pipeline.tokenizer.size, pipeline.device)
        return Row(request, Ticket(lambda: self._inbox.put(_nothing)), prompt, writer, sampler)

    # ---------------------------------------------------------------- the thread

    @torch.no_grad()
    def _run(self) -> None:
        try:
            while self._take():
                began = time.perf_counter()
                self._turn()
                self._tell()
                self.counts.busy_s += time.perf_counter() - began
        except BaseException as error:
            self._failure = error
            raise
        finally:
            with self._lock:
                self._closing = True
            self._take_all()
            for row in self.scheduler.rows:
                self._end(row, self._failed() or Cancelled("the engine was closed"))
            self._tell()

    def _failed(self) -> Exception | None:
        if self._failure is None:
            return None
        error = RuntimeError("the engine has failed")
        error.__cause__ = self._failure
        return error

    def _take(self) -> bool:
        """What has come in; waits for something where there is nothing to do. False when the engine closes."""
        idle = not (self.scheduler.waiting or self.scheduler.reading or self.scheduler.writing)
        if idle:
            self._accept(self._inbox.get())
        self._take_all()
        return not self._closing

    def _take_all(self) -> None:
        while not self._inbox.empty():
            self._accept(self._inbox.get())

    def _accept(self, item: Row | Callable[[], None] | None) -> None:
        if isinstance(item, Row):
            with self._lock:
                self._arriving -= 1
                self.scheduler.waiting.append(item)
        elif item is not None:
            item()

    def _turn(self) -> None:
        self._sweep()
        for row in self.scheduler.admit():
            self._begin(row)
        if wanted := [found for row in self.scheduler.reading for found in row.wanted()]:
            self.media.work(wanted)
        for row in list(self.scheduler.reading):
            if error := next((features.error for _, features in row.wanted() if features.error), None):
                self._end(row, error)
        self._read(self.scheduler.portion(self.config.portion if self.scheduler.writing else self.config.idle_portion))
        if self.scheduler.writing:
            self._write(list(self.scheduler.writing))

    def _sweep(self) -> None:
        for row in self.scheduler.rows:
            if row.ticket.cancelled:
                self._end(row, Cancelled("the request was cancelled"))
            elif row.expired and not row.ending:
                if row.first:
                    self._finish(row, "deadline")
                else:
                    self._end(row, Expired(f"nothing was written within {row.request.timeout_s} s"))

    def _begin(self, row: Row) -> None:
        """Fill the row's slot with the state that it goes on from: the given one, a known one, or an empty one."""
        pool, state = self._step.pool, row.request.state
        end = len(row.prompt.ids)
        for place in reversed(row.prompt.places):
            known = self.states.find(place.key)
            if known and (place.position < end or known.hidden is not None or not row.request.write):
                state, row.position, row.recalled = known.state, place.position, place.position
                row.hidden = known.hidden if place.position == end else None
                self.states.hits += 1
                break
        else:
            self.states.misses += bool(row.prompt.places)
        if state is None:
            pool.clear(row.slot)
        else:
            pool.put(state, row.slot)
        self.counts.tokens_recalled += row.recalled
        row.ticket.recalled = row.recalled
        for medium in row.prompt.media:
            if medium.start + medium.offset + medium.count > row.position:
                row.features[medium.start] = self.media.begin(medium)
        if row.position == end:
            self._has_read(row)

    def _read(self, portion: Sequence[tuple[Row, int]]) -> None:
        """The next ids of some rows, side by side."""
        if not portion:
            return
        began = time.perf_counter()
        model, device = self.pipeline.model, self.pipeline.device
        lengths = [count for _, count in portion]
        longest = -(-max(lengths) // STRIDE) * STRIDE
        ids = torch.full((len(portion), longest), self.pipeline.tokenizer.end_id)
        for i, (row, count) in enumerate(portion):
            ids[i, :count] = torch.tensor(row.prompt.ids[row.position : row.position + count])
        features = {kind: [t for row, n in portion for t in row.tokens_of(kind, n)] for kind in ("image", "audio")}
        given = [torch.cat(tokens) if tokens else None for tokens in features.values()]
        x = model.embed(ids.to(device), *given)
        hidden = read(self._step, model.lm, x, [row.slot for row, _ in portion], lengths)
        took = time.perf_counter() - began
        self.counts.tokens_read += sum(lengths)
        for (row, count), last in zip(portion, hidden, strict=True):
            row.position += count
            row.prefill_s += took
            place = next((p for p in row.prompt.places if p.kept and p.position == row.position), None)
            at_end = row.position == len(row.prompt.ids)
            if place is not None:
                self.states.keep(place.key, self._state(row), last.clone() if at_end else None)
            if at_end:
                row.hidden = last
                self._has_read(row)

    def _has_read(self, row: Row) -> None:
        row.began = time.perf_counter()
        if row.request.write:
            self.scheduler.write(row)
        else:
            row.ending = "read"
            self._give(row)

    def _write(self, rows: list[Row]) -> None:
        """One token of every answer."""
        for row in rows:
            if row.ticket.stopped and not row.ending:
                self._finish(row, "cancelled")
        choosing = [row for row in rows if not row.ending]
        next_ids = self._choose(choosing) if choosing else {}
        stepping = []
        for row in rows:
            if row.slot < 0:
                continue  # it has failed
            if row in next_ids:
                stepping.append((row, next_ids[row]))
            elif row.forced:
                stepping.append((row, row.forced.pop(0)))
            else:
                self._give(row)
        if not stepping:
            return
        ids = torch.tensor([token for _, token in stepping], device=self.pipeline.device)
        hidden = self._step(self.pipeline.model.lm.embed(ids), [row.slot for row, _ in stepping])
        for (row, token), after in zip(stepping, hidden, strict=True):
            row.hidden = after
            row.read.append(token)
            if row.ending and not row.forced:
                self._give(row)

    def _choose(self, rows: Sequence[Row]) -> dict[Row, int]:
        """The next token of each of these answers, and its text to those who wait for it."""
        logits = self._step.logits(torch.stack([_present(row.hidden) for row in rows]))
        logits.index_fill_(1, self._unwritable, -torch.inf)
        found = {}
        now = time.perf_counter()
        for i, (row, token) in enumerate(zip(rows, choose(logits, [row.sampler for row in rows]), strict=True)):
            if token is None:
                greatest = logits[i].max().item()
                self._end(row, FloatingPointError(f"the greatest logit is {greatest}: the weights are broken"))
                continue
            row.first = row.first or now
            piece = row.writer.push(token)
            row.ticket.written = len(row.writer.tokens)
            if not row.text and self._turn_end(row):
                piece = piece.lstrip()
            row.text += piece
            count = row.request.logprobs
            scores = () if count is None else (score(logits[i], token, count, self.pipeline.tokenizer),)
            if piece or scores:
                self._put(row, Piece(piece, scores))
            if row.writer.finish_reason:
                self._finish(row, row.writer.finish_reason)
            found[row] = token
        self.counts.tokens_written += len(found)
        return found

    def _finish(self, row: Row, reason: str) -> None:
        """The answer ends here; its state has yet to read the turn's end, as the template has it, unless it did."""
        row.ending = reason
        turn_end, tokenizer = self._turn_end(row), self.pipeline.tokenizer
        if turn_end and turn_end not in tokenizer.decode(row.writer.tokens):
            row.forced = tokenizer.encode(turn_end)

    def _turn_end(self, row: Row) -> str:
        return "" if row.request.text is not None else self.pipeline.model.config.template.turn_end

    def _give(self, row: Row) -> None:
        """The answer, and the slot back."""
        now = time.perf_counter()
        prompt, written = row.prompt, len(row.writer.tokens)
        state = self._state(row)
        if prompt.places and row.read:
            said = prompt.said.copy()
            said.read(row.read)
            self.states.keep(said.key, state, through=True)
        media, lasted = prompt.media_tokens, now - row.began
        timings = Timings(
            self.pipeline.load_s,
            sum(features.seconds for features in row.features.values()),
            row.prefill_s,
            (row.first or now) - row.submitted,
            written / lasted if written and lasted > 0 else 0.0,
        )
        usage = Usage(len(prompt.ids) - media, media, written)
        self.counts.answered += 1
        self._end(row, Answer(row.text, row.ending, usage, timings, state))

    def _state(self, row: Row) -> State:
        """A copy of what the row's slot holds."""
        before = 0 if row.request.state is None else row.request.state.tokens_seen
        state = replace(self._step.pool.take(row.slot), tokens_seen=before + row.position + len(row.read))
        return self.pipeline.sign(state, row.prompt.open_turn and row.position == len(row.prompt.ids))

    def _end(self, row: Row, item: Answer | Exception) -> None:
        if isinstance(item, Cancelled):
            self.counts.cancelled += 1
        elif isinstance(item, Exception):
            self.counts.failed += 1
        self.scheduler.remove(row)
        self._put(row, item)

    def _put(self, row: Row, item: Piece | Answer | Exception) -> None:
        row.ticket.put(item)
        self._told[row.ticket] = None

    def _tell(self) -> None:
        wake(self._told)
        self._told.clear()


def _nothing() -> None:
    """Wakes the thread, which then looks at its tickets."""


def _present(hidden: Tensor | None) -> Tensor:
    assert hidden is not None
    return hidden
