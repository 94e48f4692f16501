"""States that clients asked to keep, by ids that nobody can guess: in memory, and on disk where there is a folder."""

import asyncio
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from app.api.config import ServerConfig
from app.api.errors import Refused, log
from app.drafts import remove_drafts
from app.engine import Engine
from app.lru import ByteBound
from mm_rwkv7.state import State

NAME = re.compile(r"state_[0-9a-f]{40}")


@dataclass(frozen=True)
class Kept:
    """An id tells when the state was kept, in seconds, and then 128 bits of chance."""

    id: str
    state: State

    @classmethod
    def now(cls, state: State) -> "Kept":
        return cls(f"state_{int(time.time()):08x}{secrets.token_hex(16)}", state.map(Tensor.cpu))

    @property
    def created(self) -> int:
        return int(self.id[len("state_") :][:8], 16)

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
    """At most `limit` bytes of RAM; the ones used least recently go. Whoever knows an id may read and remove the state;
    nobody can change it. With `files` a state is on disk before its id is told, what RAM drops is found there, and
    several processes that share the folder share the states. For one event loop; files are touched in other threads.
    """

    def __init__(self, limit: int, files: "StateFiles | None" = None) -> None:
        self._held = ByteBound[Kept](limit)
        self._files = files

    async def keep(self, state: State) -> Kept:
        kept = Kept.now(state)
        if kept.bytes > self._held.limit:
            raise Refused(400, f"a state takes {kept.bytes} bytes, and this server keeps {self._held.limit}", "state")
        if self._files is not None:
            await asyncio.to_thread(self._files.write, kept)
        self._held.put(kept.id.encode(), kept, kept.bytes)
        return kept

    async def find(self, name: str) -> Kept:
        if NAME.fullmatch(name):
            found = self._held.get(name.encode())
            if self._files is not None and not await asyncio.to_thread(self._files.use, name):
                self._held.pop(name.encode())  # another process removed it
                found = None
            elif self._files is not None and found is None:
                found = await asyncio.to_thread(self._files.read, name)
                if found is not None:
                    self._held.put(name.encode(), found, found.bytes)
            if found is not None:
                return found
        raise Refused(404, "there is no such state; it may have had to make room", "state", "state_not_found")

    async def get(self, name: str | None) -> State | None:
        """The state to go on from, None where none was named."""
        return None if name is None else (await self.find(name)).state

    async def remove(self, name: str) -> None:
        await self.find(name)
        self._held.pop(name.encode())
        if self._files is not None:
            await asyncio.to_thread(self._files.remove, name)

    @property
    def bytes(self) -> int:
        """In RAM."""
        return self._held.bytes


class StateFiles:
    """Kept states as files of one model's, which any process may write, read and remove. They take about `limit` bytes:
    each process removes the ones used least recently whenever it has written a sixteenth of that."""

    def __init__(self, folder: Path, fingerprint: str, limit: int) -> None:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self._folder, self._fingerprint, self._limit = folder, fingerprint, limit
        self._make_room()  # others may have filled the folder before
        self._written = 0

    def write(self, kept: Kept) -> None:
        try:
            kept.state.save(self._path(kept.id))
        except OSError as error:
            log.exception("a state cannot be written to %s", self._folder)
            raise Refused(503, "the server cannot keep a state now; its log says why", code="not_kept") from error
        self._written += kept.bytes
        if self._written > self._limit // 16:
            self._written = 0
            self._make_room()

    def use(self, name: str) -> bool:
        """Whether there is such a state; it counts as used now."""
        try:
            os.utime(self._path(name))
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> Kept | None:
        try:
            return Kept(name, State.load(self._path(name), self._fingerprint))
        except ValueError:  # damaged, or gone by now
            return None

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _make_room(self) -> None:
        remove_drafts(self._folder)
        total = 0
        for _, size, path in sorted(self._found(), reverse=True):
            total += size
            if total > self._limit:
                with suppress(OSError):  # another user's
                    path.unlink()

    def _found(self) -> Iterator[tuple[float, int, Path]]:
        """When each was used, its bytes, its path."""
        for path in self._folder.glob("state_*.safetensors"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            yield found.st_mtime, found.st_size, path


def kept_files(engine: Engine, config: ServerConfig) -> StateFiles | None:
    """Where an engine's server keeps states besides RAM, if anywhere."""
    folder, model = engine.config.folder, engine.pipeline.fingerprint
    return None if folder is None else StateFiles(folder / model[:16] / "kept", model, config.state_disk_bytes)
