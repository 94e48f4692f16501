"""A cache bounded by bytes, from which the least recently used go first."""

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteBound(Generic[Value]):
    """Values by key, at most `limit` bytes of them; a value larger than that is not kept. Not for several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._held: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def get(self, key: bytes) -> Value | None:
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: bytes, value: Value, size: int) -> list[tuple[bytes, Value]]:
        """Keep a value of so many bytes; what had to go for it, the oldest first."""
        if key in self._held:
            self.bytes -= self._held.pop(key)[1]
        self._held[key] = value, size
        self.bytes += size
        gone = []
        while self.bytes > self.limit:
            old, (dropped, its_size) = self._held.popitem(last=False)
            self.bytes -= its_size
            gone.append((old, dropped))
        return gone

    def pop(self, key: bytes) -> Value | None:
        if key not in self._held:
            return None
        value, size = self._held.pop(key)
        self.bytes -= size
        return value

    def drain(self) -> list[tuple[bytes, Value]]:
        """Everything, the oldest first; nothing is left."""
        held = [(key, value) for key, (value, _) in self._held.items()]
        self._held.clear()
        self.bytes = 0
        return held
