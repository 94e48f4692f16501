"""The names of flash-linear-attention, under which RWKV-7 stands on the Hugging Face hub: `model.layers.0.attn...`.

Letters: D width, R rank.
"""

import re
from collections.abc import Mapping

from torch import Tensor

HEAD = "lm_head."
# Theirs and ours, inside the model and inside a layer.
OUTSIDE = {HEAD: "head.", "embeddings.": "emb.", "norm.": "ln_out.", "layers.0.pre_norm.": "ln0."}
INSIDE = {
    "attn_norm.": "ln1.",
    "ffn_norm.": "ln2.",
    "attn.r_proj.": "time_mix.receptance.",
    "attn.k_proj.": "time_mix.key.",
    "attn.v_proj.": "time_mix.value.",
    "attn.o_proj.": "time_mix.output.",
    "attn.g_norm.": "time_mix.ln_x.",
    **{
        f"attn.{c}_lora.lora.{theirs}": f"time_mix.{c}{ours}"
        for c in "wavg"
        for theirs, ours in (("0.weight", 1), ("2.weight", 2), ("2.bias", 0))
    },
    "attn.": "time_mix.",
    "ffn.": "channel_mix.",
}
LAYER = re.compile(r"layers\.(\d+)\.(.+)")
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
LOW_RANK = re.compile(r"time_mix\.[wavg][12]$")  # nn.Linear's layout there, (R, D) for (D, R)
VECTOR = re.compile(r"(time_mix\.x_[rwkvag]|time_mix\.k_[ka]|channel_mix\.x_k)$")  # (1, 1, D) or (D) there
STACKED, MIXES = "time_mix.x_x", "rwkvag"  # early files hold the six token-shift mixes as one tensor
UNUSED = re.compile(r"layers\.0\.attn\.v_lora\.")


def holds(name: str, prefix: str = "model.") -> bool:
    """Whether a tensor of a file belongs to the language model behind `prefix`; the head stands outside of it."""
    return name.startswith((HEAD, f"{prefix}embeddings.", f"{prefix}norm.", f"{prefix}layers."))


def ours(tensors: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """The language model behind `prefix`, and the head, under the names of `RWKV7`. What it has besides keeps its
    name, for a strict load to find; tensors beside it are left out."""
    found: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(prefix)
        if UNUSED.match(name) or not holds(full, prefix):
            continue
        name = _our_name(name)
        if name.endswith(STACKED) and tensor.shape[0] == len(MIXES):
            found |= {name.removesuffix("x") + c: row.flatten() for c, row in zip(MIXES, tensor, strict=True)}
            continue
        if LOW_RANK.search(name) and tensor.ndim == 2:
            tensor = tensor.t()
        elif VECTOR.search(name) and tuple(tensor.shape[:-1]) == (1, 1):
            tensor = tensor[0, 0]
        found[name] = tensor
    return found


def spell(name: str, prefix: str = "model.") -> str:
    """Their name of one of our tensors."""
    if name.startswith("head."):
        prefix = ""
    for theirs, our in OUTSIDE.items():
        if name.startswith(our):
            return prefix + name.replace(our, theirs, 1)
    if block := BLOCK.fullmatch(name):
        for theirs, our in INSIDE.items():
            if block[2].startswith(our):
                return f"{prefix}layers.{block[1]}.{block[2].replace(our, theirs, 1)}"
    return prefix + name


def _our_name(name: str) -> str:
    for theirs, our in OUTSIDE.items():
        if name.startswith(theirs):
            return name.replace(theirs, our, 1)
    if layer := LAYER.fullmatch(name):
        for theirs, our in INSIDE.items():
            if layer[2].startswith(theirs):
                return f"blocks.{layer[1]}.{layer[2].replace(theirs, our, 1)}"
    return name
