"""The one way into a tagger of sounds of any format: an encoder and classes, without a language model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mm_rwkv7 import audioset
from mm_rwkv7.interop import ast, audiorwkv
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.tagger import TaggerConfig


class TaggerFormat(Protocol):
    """A module of this folder; `FORMATS` lists them."""

    FORMAT: str

    def recognises(self, stored: Stored) -> bool: ...

    def classes(self, stored: Stored) -> int:
        """How many there are. Raises ValueError."""
        ...

    def config(self, stored: Stored, labels: tuple[str, ...]) -> TaggerConfig:
        """With sizes out of the file. Raises ValueError."""
        ...

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        """Under the names of `Tagger`."""
        ...

    def spell(self, name: str) -> str:
        """The file's name for one of these."""
        ...


FORMATS: tuple[TaggerFormat, ...] = (ast, audiorwkv)


@dataclass(frozen=True)
class OpenedTagger:
    """A tagger of any format as `Tagger(config)` takes it; see `format.Checkpoint`."""

    format: str
    config: TaggerConfig
    tensors: Mapping[str, Tensor]
    path: Path
    spell: Callable[[str], str]


def tagger_format(stored: Stored) -> TaggerFormat | None:
    """The format of which a file is, None where it is no tagger."""
    return next((format for format in FORMATS if format.recognises(stored)), None)


def open_tagger(stored: Stored, format: TaggerFormat) -> OpenedTagger:
    """Raises ValueError."""
    classes = format.classes(stored)
    labels = (ast.labels(stored) if format is ast else None) or audioset.labels(classes)
    if len(labels) != classes:
        raise ValueError(f"{stored.path} tells {classes} classes apart, its config names {len(labels)}")
    return OpenedTagger(format.FORMAT, format.config(stored, labels), format.tensors(stored), stored.path, format.spell)
