"""The language model of a checkpoint, whatever names it is stored under. Knows nothing of models, so that `rwkv7` can
use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mm_rwkv7.interop import blinkdl, fla
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.variants import RWKV6, variant

SCHEMES = (("blocks.0.att.r_k", "BlinkDL", blinkdl), ("layers.0.attn.r_k", "fla", fla))
NATIVE, EXPORTED = "lm.", "model."  # what our names stand behind, in our folder and in one for transformers


@dataclass(frozen=True)
class LanguageModel:
    """`tensors` under the names of `RWKV7`; `format` is whose names the file uses, `spell` turns one of ours into the
    file's, and `holds` says of a name of the file whether it belongs to the language model. `sizes` are the fields of
    its config where the file has one, and None where shapes tell them."""

    format: str
    tensors: Mapping[str, Tensor]
    spell: Callable[[str], str]
    holds: Callable[[str], bool]
    sizes: Any = None


def language_model(stored: Stored) -> LanguageModel:
    """Find it, alone or inside a larger model. A ValueError names the variant where it is a relative of RWKV-7 that is
    not computed here, and says where our own config has more blocks than the file."""
    refuse_variants(stored)
    names = stored.tensors
    if stored.is_native:
        return _ours(stored, NATIVE, stored.config)
    if stored.is_exported:
        return _ours(stored, EXPORTED + NATIVE, stored.config.get("native"))
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


def _ours(stored: Stored, prefix: str, config: Any) -> LanguageModel:
    inside = {name.removeprefix(prefix): t for name, t in stored.tensors.items() if name.startswith(prefix)}
    sizes = config.get("lm") if isinstance(config, dict) else None
    sizes = sizes if isinstance(sizes, dict) else {}
    held = len({name.split(".")[1] for name in inside if name.startswith("blocks.")})
    if isinstance(layers := sizes.get("layers"), int) and layers > held:  # before so many are built
        raise ValueError(f"{stored.path} does not fit: it holds {held} blocks, its config {layers}")
    return LanguageModel("mm-rwkv7", inside, prefix.__add__, lambda name: name.startswith(prefix), sizes)


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
