"""The states of all conversations, by handles, in bounded memory."""

import threading
from itertools import count

from torch import Tensor

from app.lru import ByteBound
from mm_rwkv7.state import State

Handle = bytes
NOTHING: Handle = b""  # the handle of the state of who has read nothing


class Gone(ValueError):  # noqa: N818
    """The state had to make room for others."""


class Shelf:
    """At most `limit` bytes of RAM; the states used least recently go. From any thread.

    Turns hold handles: forks share states by sharing turns, and a long conversation loses its oldest states first.
    """

    def __init__(self, limit: int) -> None:
        self._held = ByteBound[State](limit)
        self._numbers = count(1)
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._held.bytes

    def put(self, state: State) -> Handle:
        """Keep a state; what takes more than the limit is gone at once."""
        state = state.map(Tensor.cpu)
        with self._lock:
            handle = next(self._numbers).to_bytes(8)
            self._held.put(handle, state, size_of(state))
        return handle

    def get(self, handle: Handle) -> State | None:
        """The state, which is None for `NOTHING`."""
        if handle == NOTHING:
            return None
        with self._lock:
            found = self._held.get(handle)
        if found is None:
            raise Gone("the state at that point had to make room for others, and nothing can be done from there")
        return found


def size_of(state: State) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.nbytes for layer in state.layers for tensor in layer)
