"""What every checkpoint format does: say whether a file is its, and open it under our names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any format as `MMRWKV7(config)` takes it: `tensors` under the names of that module's parameters,
    still in the file (memory-mapped) and of the types stored there. What a format does not know keeps its own name,
    for the strict load to report. `spell` turns one of our names into the file's, for messages. With `fetch_tower`
    or `fetch_sound` the file leaves out the tower or the sound encoder: their published weights are fetched by name
    when the model is built."""

    format: str
    config: MMConfig
    tensors: Mapping[str, Tensor]
    path: Path
    spell: Callable[[str], str] = str
    fetch_tower: bool = False
    fetch_sound: bool = False


class Format(Protocol):
    """A module of this folder; `opening.FORMATS` lists them."""

    def recognises(self, stored: Stored) -> bool:
        """Whether the file is of this format, by its tensors' names, shapes and path."""
        ...

    def open_stored(self, stored: Stored) -> Checkpoint:
        """Open a file that it recognises. Raises ValueError."""
        ...
