"""BlinkDL's names for RWKV-7 (x070): the published World, Pile and G1 files, and the language model inside others.

Letters: D width, H heads, N head size.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# His part of a name, and ours.
NAMES = (("blocks.0.ln0.", "ln0."), (".att.", ".time_mix."), (".ffn.", ".channel_mix."))
# Stored as (1, 1, D); ours are (D).
VECTOR = re.compile(r"blocks\.\d+\.(time_mix\.(x_[rwkvag]|[wav]0|k_[ka])|channel_mix\.x_k)")
# Some files have them, some do not: the first block has no earlier values to mix in.
UNUSED = frozenset(f"blocks.0.att.v{i}" for i in range(3))
PART = re.compile(r"(emb|blocks|ln_out|head)\.")


def holds(name: str, prefix: str = "") -> bool:
    """Whether a tensor of a file belongs to the language model behind `prefix`."""
    return name.startswith(prefix) and PART.match(name.removeprefix(prefix)) is not None


def ours(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The language model behind `prefix` under the names of `RWKV7`; what it has besides keeps its name, for a
    strict load to find. Tensors beside the language model are left out."""
    found: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(prefix)
        if name in UNUSED or not holds(full, prefix):
            continue
        for his, our in NAMES:
            name = name.replace(his, our, 1)
        if VECTOR.fullmatch(name) and tuple(tensor.shape[:-1]) == (1, 1):
            tensor = tensor[0, 0]
        found[name] = tensor
    return found


def theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `ours`: a language model as BlinkDL would have saved it."""
    return {spell(name): tensor[None, None] if VECTOR.fullmatch(name) else tensor for name, tensor in tensors.items()}


def spell(name: str, prefix: str = "") -> str:
    """BlinkDL's name of one of our tensors."""
    for his, our in NAMES:
        if name.startswith("ln0.") or not our.startswith("ln0."):
            name = name.replace(our, his, 1)
    return prefix + name
