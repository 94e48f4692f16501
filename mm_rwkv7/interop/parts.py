"""A model that sees, as its parts lie in a foreign file: each behind a prefix of its own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop import blinkdl
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint


@dataclass(frozen=True)
class Part:
    """`tensors` under our names, which stand behind `ours` in `MMRWKV7`. `spell` turns such a name into the file's, and
    `holds` says of a name of the file whether it belongs to this part."""

    ours: str
    tensors: Mapping[str, Tensor]
    spell: Callable[[str], str]
    holds: Callable[[str], bool]


def blinkdl_part(tensors: Mapping[str, Tensor], theirs: str, ours: str) -> Part:
    """RWKV-7 blocks under BlinkDL's names behind `theirs`."""
    holds, spell = partial(blinkdl.holds, prefix=theirs), partial(blinkdl.spell, prefix=theirs)
    return Part(ours, blinkdl.ours(tensors, theirs), spell, holds)


def renamed_part(
    tensors: Mapping[str, Tensor],
    theirs: str,
    ours: str,
    own_name: Callable[[str], str | None] = str,
    spell: Callable[[str], str] = str,
) -> Part:
    """Whatever lies behind `theirs`; `own_name` translates the rest of a name, None for what is no weight, and `spell`
    translates back."""
    rest = {name: name.removeprefix(theirs) for name in tensors if name.startswith(theirs)}
    found = {own: tensors[name] for name, inside in rest.items() if (own := own_name(inside)) is not None}
    return Part(ours, found, lambda name: theirs + spell(name), lambda name: name.startswith(theirs))


def assemble(format: str, config: MMConfig, parts: Sequence[Part], stored: Stored) -> Checkpoint:
    """The checkpoint of these parts. What belongs to none of them keeps its name, for a strict load to find."""
    tensors = {part.ours + name: tensor for part in parts for name, tensor in part.tensors.items()}
    tensors |= {name: t for name, t in stored.tensors.items() if not any(part.holds(name) for part in parts)}

    def spell(name: str) -> str:
        for part in parts:
            if name.startswith(part.ours):
                return part.spell(name.removeprefix(part.ours))
        return name

    def left_out(ours: str) -> bool:
        return not any(name.startswith(ours) for name in tensors)

    tower = config.tower is not None and left_out("tower.")
    sound = config.sound is not None and left_out("sound.encoder.")
    return Checkpoint(format, config, tensors, stored.path, spell, tower, sound)


class Shapes:
    """Sizes out of the shapes of a file's tensors."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor. A ValueError names one that is missing or has other dimensions."""
        tensor = self.stored.tensors.get(name)
        if tensor is None:
            raise ValueError(f"{self.stored.path} does not tell its sizes: missing {name}")
        if tensor.ndim != dimensions:
            raise ValueError(
                f"{self.stored.path}: {name} has shape {tuple(tensor.shape)}, expected {dimensions} dimensions"
            )
        return tuple(tensor.shape)

    def depth(self, prefix: str) -> int:
        """The number of blocks whose names begin with `prefix` and a number. Raises ValueError where there are none."""
        number = re.compile(re.escape(prefix) + r"(\d+)\.")
        found = {int(match[1]) for name in self.stored.tensors if (match := number.match(name))}
        if not found:
            raise ValueError(f"{self.stored.path} does not tell its sizes: missing {prefix}0")
        return len(found)

    def holds(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.stored.tensors)
