"""The language model of a checkpoint, whatever names it is stored under. Knows nothing of models, so that `rwkv7` can
use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mm_rwkv7.interop import blinkdl, fla
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.variants import RWKV6, variant

SCHEMES = (("blocks.0.att.r_k", "BlinkDL", blinkdl), ("layers.0.attn.r_k", "fla", fla))
NATIVE = "lm."


@dataclass(frozen=True)
class LanguageModel:
    """`tensors` under the names of `RWKV7`; `format` is whose names the file uses, `spell` turns one of ours into the
    file's, and `holds` says of a name of the file whether it belongs to the language model."""

    format: str
    tensors: Mapping[str, Tensor]
    spell: Callable[[str], str]
    holds: Callable[[str], bool]


def language_model(stored: Stored) -> LanguageModel:
    """Find it, alone or inside a larger model. A ValueError names the variant where it is a relative of RWKV-7 that is
    not computed here."""
    refuse_variants(stored)
    names = stored.tensors
    if stored.is_native:
        inside = {name.removeprefix(NATIVE): t for name, t in names.items() if name.startswith(NATIVE)}
        return LanguageModel("mm-rwkv7", inside, lambda name: NATIVE + name, lambda name: name.startswith(NATIVE))
    for anchor, format, scheme in SCHEMES:
        for name in names:
            if name.endswith(anchor):
                prefix = name.removesuffix(anchor)
                return LanguageModel(
                    format,
                    scheme.ours(names, prefix),
                    partial(scheme.spell, prefix=prefix),
                    partial(scheme.holds, prefix=prefix),
                )
    raise unrecognised(stored)


def is_language_model(stored: Stored) -> bool:
    """Whether `language_model` finds one."""
    return any(name.endswith(anchor) for name in stored.tensors for anchor, _, _ in SCHEMES)


def refuse_variants(stored: Stored) -> None:
    """Raise ValueError if the file holds a relative of RWKV-7."""
    if (name := variant(stored.tensors)) is not None:
        hint = ": `mm-rwkv7 convert IN OUT --warm-start` makes the start of an RWKV-7 of it" if name == RWKV6 else ""
        raise ValueError(f"{stored.path} holds {name}, expected RWKV-7 (x070){hint}")


def unrecognised(stored: Stored) -> ValueError:
    names = sorted(stored.tensors)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return ValueError(f"{stored.path} is no RWKV-7 that is known here: it holds {len(names)} tensors ({shown})")
