"""A-RWKV's taggers (github.com/Jiayu-Xiong/AudioRWKV at 0341467, models/rwkv7.py, dataloader.py and run.py; arXiv
2509.02167): the encoder of `encoders/birwkv7.py` and AudioSet's 527 classes.

Its sounds have 32 kHz and 9.92 s, filled up with zeros that the model hears; longer ones are cut into such windows here
and cut off there. Its classifier reads the norm of the mean, and adds nothing to it.
"""

import re
from dataclasses import replace

import torch
from torch import Tensor

from encoders.birwkv7 import PUBLISHED_SPECTROGRAM as SPECTROGRAM
from encoders.birwkv7 import BiRWKV7Config
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.parts import Shapes
from mm_rwkv7.tagger import TaggerConfig

FORMAT = "A-RWKV"
PATCH = 16
MIXED = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")  # the rows of our `mix`
WRAPPER = "module."  # of torch's DataParallel, in which it is trained

# Theirs and ours in the names of the encoder's parameters; none of ours is in a name of theirs.
RENAMED = (
    ("emb.", "patches."),
    ("pos_embed", "positions"),
    (".att.gate.weight", ".time_mix.direction"),
    (".att.x_*", ".time_mix.mix"),
    (".time_shift.", ".shift.conv."),
    (".att.", ".time_mix."),
    (".ffn.", ".channel_mix."),
)
_UNUSED = re.compile(r"^blocks\.0\.att\.v[012]$")  # the first layer has no values to mix in, yet parameters to do it


def recognises(stored: Stored) -> bool:
    return {"pos_embed", "blocks.0.att.gate.weight"} <= {name.removeprefix(WRAPPER) for name in stored.tensors}


def config(stored: Stored, labels: tuple[str, ...]) -> TaggerConfig:
    shapes = Shapes(_unwrapped(stored))
    width, *_ = shapes.of("emb.weight", 4)
    _, tokens, _ = shapes.of("pos_embed", 3)
    ranks = {letter: shapes.of(f"blocks.0.att.{letter}1", 2)[1] for letter in "wavg"}
    encoder = BiRWKV7Config(
        width=width,
        layers=shapes.depth("blocks."),
        head_size=shapes.of("blocks.0.att.r_k", 2)[1],
        decay_rank=ranks["w"],
        iclr_rank=ranks["a"],
        value_rank=ranks["v"],
        gate_rank=ranks["g"],
        norm=False,
        hears_padding=True,
        spectrogram=replace(SPECTROGRAM, frames=tokens * PATCH * PATCH // SPECTROGRAM.bins),
    )
    return TaggerConfig(encoder, labels)


def classes(stored: Stored) -> int:
    return Shapes(_unwrapped(stored)).of("head.weight", 2)[0]


def tensors(stored: Stored) -> dict[str, Tensor]:
    """Under the names of `Tagger`. What belongs nowhere there keeps its own."""
    theirs = dict(_unwrapped(stored).tensors)
    found: dict[str, Tensor] = {}
    for name in [name for name in theirs if name.endswith(".att.x_r")]:
        rows = [name.removesuffix(MIXED[0]) + letter for letter in MIXED]
        if len({theirs[row].shape if row in theirs else None for row in rows}) == 1:
            mix = torch.stack([theirs.pop(row).flatten() for row in rows])
            found[f"encoder.{_own_name(name).removesuffix(MIXED[0])}mix"] = mix
    if (weight := theirs.pop("head.weight", None)) is not None:
        found |= {"head.1.weight": weight, "head.1.bias": weight.new_zeros(weight.shape[:1])}
    for name, tensor in theirs.items():
        if name.startswith("ln_out."):
            found[name.replace("ln_out", "head.0")] = tensor
        elif not _UNUSED.match(name):
            found[f"encoder.{_own_name(name)}"] = _own_shape(name, tensor)
    return found


def spell(name: str) -> str:
    """The file's name for one of `Tagger`'s parameters."""
    name = name.removeprefix("encoder.").replace("head.0", "ln_out").replace("head.1", "head")
    for theirs, ours in RENAMED:
        name = name.replace(ours, theirs)
    return name


def _own_name(name: str) -> str:
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def _own_shape(name: str, tensor: Tensor) -> Tensor:
    """A vector lies as (1, 1, D) there, the positions as (1, T, D), the gate as (H, N, 1)."""
    if name.endswith("gate.weight") and tensor.ndim == 3:
        return tensor.squeeze(2)
    return tensor.squeeze(0).squeeze(0) if tensor.ndim == 3 else tensor


def _unwrapped(stored: Stored) -> Stored:
    return replace(stored, tensors={name.removeprefix(WRAPPER): tensor for name, tensor in stored.tensors.items()})
