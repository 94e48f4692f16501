"""States that clients asked to keep, by ids that nobody can guess."""

import secrets
import time
from dataclasses import dataclass, field

from torch import Tensor

from app.api.errors import Refused
from app.lru import ByteBound
from mm_rwkv7.state import State


@dataclass(frozen=True)
class Kept:
    id: str
    state: State
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.state.layers for tensor in layer)

    @property
    def told(self) -> dict[str, object]:
        """The state as the interface describes it."""
        return {
            "id": self.id,
            "object": "state",
            "created": self.created,
            "tokens_seen": self.state.tokens_seen,
            "open_turn": self.state.open_turn,
            "bytes": self.bytes,
        }


class KeptStates:
    """At most `limit` bytes of RAM; the ones used least recently go. For one thread. Whoever knows an id may read and
    remove the state; nobody can change it."""

    def __init__(self, limit: int) -> None:
        self._held = ByteBound[Kept](limit)

    def keep(self, state: State) -> Kept:
        kept = Kept(f"state_{secrets.token_hex(16)}", state.map(Tensor.cpu))
        if kept.bytes > self._held.limit:
            raise Refused(400, f"a state takes {kept.bytes} bytes, and this server keeps {self._held.limit}", "state")
        self._held.put(kept.id.encode(), kept, kept.bytes)
        return kept

    def find(self, name: str) -> Kept:
        found = self._held.get(name.encode("utf-8", "replace"))
        if found is None:
            raise Refused(404, "there is no such state; it may have had to make room", "state", "state_not_found")
        return found

    def get(self, name: str | None) -> State | None:
        """The state to go on from, None where none was named."""
        return None if name is None else self.find(name).state

    def remove(self, name: str) -> None:
        self.find(name)
        self._held.pop(name.encode())

    @property
    def bytes(self) -> int:
        return self._held.bytes
