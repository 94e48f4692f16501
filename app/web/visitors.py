"""Who is on the page: each open tab with its conversations."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from app.engine import Engine
from app.web.conversation import Conversation
from app.web.shelf import Shelf

MOST = 8  # conversations of a tab
TITLE = 22  # letters
STATES = 1 << 30  # bytes of all conversations


class Visitor:
    """A tab: its conversations by number, and the one that is shown."""

    def __init__(self, begin: Callable[[], Conversation]) -> None:
        self._begin = begin
        self._conversations = {1: begin()}
        self._last = self.shown = 1
        self.closed: Conversation | None = None  # the last one in which something was said

    @property
    def current(self) -> Conversation:
        return self._conversations[self.shown]

    @property
    def titles(self) -> list[tuple[str, int]]:
        """What each conversation is called, and its number."""
        return [(_title(number, one), number) for number, one in self._conversations.items()]

    def open(self, conversation: Conversation | None = None) -> None:
        """Show this conversation, or else a new one, beside the others. ValueError when there are too many."""
        if len(self._conversations) >= MOST:
            raise ValueError(f"a tab holds {MOST} conversations; close one first")
        self._last += 1
        self._conversations[self._last] = conversation or self._begin()
        self.shown = self._last

    def show(self, number: int) -> None:
        if number not in self._conversations:
            raise ValueError("there is no such conversation")
        self.shown = number

    def close(self) -> None:
        """End the conversation that is shown; another one is shown then, a new one if it was the only one."""
        ended = self._conversations.pop(self.shown)
        if ended.turns or ended.busy:
            self.closed = ended
        ended.stop()
        if self._conversations:
            self.shown = next(reversed(self._conversations))
        else:
            self.open()

    def reopen(self) -> None:
        """Show the conversation that was closed last. ValueError when there is none, or there are too many others."""
        if self.closed is None:
            raise ValueError("no conversation was closed")
        self.open(self.closed)
        self.closed = None

    def stop(self) -> None:
        """End whatever is being written."""
        for conversation in self._conversations.values():
            conversation.stop()


def _title(number: int, conversation: Conversation) -> str:
    if not conversation.turns:
        return f"{number} · new"
    text = conversation.turns[0].text
    return f"{number} · {text if len(text) <= TITLE else text[: TITLE - 1] + '…'}"


class Visitors:
    """Visitors by an id. The least recent ones go when there are more than `capacity`, and those that have been quiet
    for `seconds`; the states of all take at most `state_bytes`.

    They stay here, and a page holds no more than the id: a conversation has locks, which a page would copy, and it must
    be within reach of a Stop that comes while another request is writing.
    """

    def __init__(
        self,
        engine: Engine,
        capacity: int = 256,
        seconds: float = 3600,
        state_bytes: int = STATES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shelf = Shelf(state_bytes)
        self._engine, self._capacity, self._seconds, self._clock = engine, capacity, seconds, clock
        self._known: OrderedDict[str, tuple[Visitor, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, visitor: str) -> Visitor:
        """The visitor of that id, a new one if there is none."""
        with self._lock:
            now = self._clock()
            known, _ = self._known.pop(visitor, (None, now))
            self._known[visitor] = known or Visitor(lambda: Conversation(self._engine, self.shelf)), now
            while len(self._known) > self._capacity or self._oldest() < now - self._seconds:
                self._known.popitem(last=False)[1][0].stop()
            return self._known[visitor][0]

    def forget(self, visitor: str) -> None:
        """The visitor has left."""
        with self._lock:
            known, _ = self._known.pop(visitor, (None, 0.0))
        if known is not None:
            known.stop()

    def _oldest(self) -> float:
        return next(iter(self._known.values()))[1]
