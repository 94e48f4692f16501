"""States after what was read before, by what exactly was read: on the device, in RAM, then on disk."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from app.drafts import remove_drafts
from app.lru import ByteBound
from mm_rwkv7.state import State

KEY_BYTES = 20


@dataclass(frozen=True)
class Known:
    """The state after a prefix, and what the head reads after its last token (D,), where that was kept: without it
    the prefix must be followed by something."""

    state: State
    hidden: Tensor | None = None

    @property
    def bytes(self) -> int:
        held = sum(tensor.nbytes for layer in self.state.layers for tensor in layer)
        return held + (0 if self.hidden is None else self.hidden.nbytes)

    def to(self, device: torch.device) -> "Known":
        hidden = None if self.hidden is None else self.hidden.to(device)
        return Known(self.state.map(lambda tensor: tensor.to(device)), hidden)


class StateCache:
    """`find` and `keep` by key (see `prompts`), from any thread. What the device's bound drops goes to RAM, what RAM's
    bound drops is written to `folder`, as state files that other processes, at the same time or later, find there. A
    model on the CPU has RAM and disk only. The bounds are bytes; without a folder nothing is written.
    """

    def __init__(
        self,
        device: torch.device,
        device_bytes: int,
        ram_bytes: int,
        folder: Path | None = None,
        disk_bytes: int = 1 << 32,
    ) -> None:
        self.hits = self.misses = 0
        self._device = device
        on_device = device.type != "cpu"
        self._tiers = [ByteBound[Known](device_bytes)] if on_device else []
        self._tiers.append(ByteBound[Known](ram_bytes))
        self._lock = threading.Lock()
        self._disk = None if folder is None else _Disk(folder, disk_bytes)

    @property
    def held(self) -> list[int]:
        """Bytes held in each tier of memory, the device's first."""
        return [tier.bytes for tier in self._tiers]

    def find(self, key: bytes) -> Known | None:
        """From memory; on the model's device."""
        with self._lock:
            for tier in self._tiers:
                if (found := tier.get(key)) is not None:
                    break
            else:
                return None
        if tier is not self._tiers[0]:
            found = found.to(self._device)
            self._insert(key, found, 0)
        return found

    def keep(self, key: bytes, state: State, hidden: Tensor | None = None, through: bool = False) -> None:
        """`through`: write it to the folder as well, without waiting for that, so that it outlives a process that is
        killed."""
        self._insert(key, Known(state, hidden), 0)
        if through and self._disk is not None:
            self._disk.write(key, state)

    def warm(self, keys: Iterable[bytes], model: str) -> None:
        """Bring the first of `keys` that is anywhere into memory. This may read a file."""
        for key in keys:
            with self._lock:
                if any(key in tier for tier in self._tiers):
                    return
            if self._disk is not None and (state := self._disk.read(key, model)) is not None:
                self._insert(key, Known(state), len(self._tiers) - 1)
                return

    def close(self) -> None:
        """Write what is in memory, where there is a folder, and wait for it."""
        if self._disk is None:
            return
        with self._lock:
            for tier in self._tiers:
                for key, known in tier.drain():
                    self._disk.write(key, known.state)
        self._disk.close()

    def _insert(self, key: bytes, known: Known, tier: int) -> None:
        with self._lock:
            going = [(key, known)]
            for place, held in enumerate(self._tiers):
                if place < tier:
                    continue
                cpu = place == len(self._tiers) - 1
                dropped = []
                for one, value in going:
                    value = value.to(torch.device("cpu")) if cpu else value
                    dropped += held.put(one, value, value.bytes)
                going = dropped
            if self._disk is not None:
                for one, value in going:
                    self._disk.write(one, value.state)


class _Disk:
    """State files named by their keys. Written by a thread of its own, since a model should not wait for a disk. Other
    processes may write and remove files in the same folder; each bounds those that it knows."""

    def __init__(self, folder: Path, limit: int) -> None:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._files = ByteBound[Path](limit)
        self._lock = threading.Lock()
        remove_drafts(folder)
        for path in sorted(folder.glob("*.safetensors"), key=_written):
            if len(path.stem) == 2 * KEY_BYTES and set(path.stem) <= set("0123456789abcdef"):
                self._note(path)
        self._waiting: SimpleQueue[tuple[bytes, State] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="states to disk", daemon=True)
        self._thread.start()

    def read(self, key: bytes, model: str) -> State | None:
        path = self._path(key)
        with self._lock:
            known = self._files.get(key) is not None
        if not path.exists():  # not written yet, or removed by another process
            with self._lock:
                self._files.pop(key)
            return None
        try:
            state = State.load(path, model)
        except ValueError:  # another model's, or damaged: as good as none
            with self._lock:
                self._files.pop(key)
            path.unlink(missing_ok=True)
            return None
        if not known:
            self._note(path)
        return state

    def write(self, key: bytes, state: State) -> None:
        with self._lock:
            known = key in self._files
        if not known:
            self._waiting.put((key, state))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (job := self._waiting.get()) is not None:
            key, state = job
            path = self._path(key)
            try:
                state.save(path)
            except OSError:  # a full disk: what was read will be read again
                continue
            self._note(path)

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.safetensors"

    def _note(self, path: Path) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # another process removed it
            return
        with self._lock:
            for _, gone in self._files.put(bytes.fromhex(path.stem), path, size):
                gone.unlink(missing_ok=True)


def _written(path: Path) -> float:
    """When a file was; 0 for one that another process has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
