"""A-RWKV's taggers (github.com/Jiayu-Xiong/AudioRWKV at 0341467, models/rwkv7.py, dataloader.py and run.py; arXiv
2509.02167): the encoder of `encoders/birwkv7.py` and AudioSet's 527 classes.

Its sounds have 32 kHz and 9.92 s, filled up with zeros that the model hears; longer ones are cut into such windows here
and cut off there. Its classifier reads the norm of the mean, and adds nothing to it.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from encoders.birwkv7 import BiRWKV7Config
from encoders.spectrogram import Spectrogram
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.parts import Shapes
from mm_rwkv7.tagger import TaggerConfig

FORMAT = "A-RWKV"
PATCH = 16
BINS = 128
MIXED = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")  # the rows of our `mix`
WRAPPER = "module."  # of torch's DataParallel, in which it is trained

# Of a name in the encoder: theirs, ours.
_RENAMED = (
    (r"^emb\.", "patches."),
    (r"^pos_embed$", "positions"),
    (r"\.att\.gate\.weight$", ".time_mix.direction"),
    (r"\.time_shift\.", ".shift.conv."),
    (r"\.att\.", ".time_mix."),
    (r"\.ffn\.", ".channel_mix."),
)
_UNUSED = re.compile(r"^blocks\.0\.att\.v[012]$")  # the first layer has no values to mix in, yet parameters to do it


def recognises(stored: Stored) -> bool:
    return {"pos_embed", "blocks.0.att.gate.weight"} <= {name.removeprefix(WRAPPER) for name in stored.tensors}


def config(stored: Stored, labels: tuple[str, ...]) -> TaggerConfig:
    shapes = Shapes(_unwrapped(stored))
    width, *_ = shapes.of("emb.weight", 4)
    _, tokens, _ = shapes.of("pos_embed", 3)
    ranks = [shapes.of(f"blocks.{min(1, i)}.att.{letter}1", 2)[1] for i, letter in enumerate("vwag")]
    encoder = BiRWKV7Config(
        width=width,
        layers=shapes.depth("blocks."),
        head_size=shapes.of("blocks.0.att.r_k", 2)[1],
        value_rank=ranks[0],
        decay_rank=ranks[1],
        iclr_rank=ranks[2],
        gate_rank=ranks[3],
        norm=False,
        hears_padding=True,
        spectrogram=Spectrogram(
            rate=32_000,
            bins=BINS,
            frames=tokens * PATCH * PATCH // BINS,
            mean=-4.421761,
            scale=4.32408,
            lowest=50.0,
            highest=14_000.0,
        ),
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
        if all(row in theirs for row in rows):
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
    for theirs, ours in (
        ("emb.", "patches."),
        ("pos_embed", "positions"),
        (".att.gate.weight", ".time_mix.direction"),
        (".att.x_*", ".time_mix.mix"),
        (".time_shift.", ".shift.conv."),
        (".att.", ".time_mix."),
        (".ffn.", ".channel_mix."),
    ):
        name = name.replace(ours, theirs)
    return name


def _own_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _own_shape(name: str, tensor: Tensor) -> Tensor:
    """A vector lies as (1, 1, D) there, the positions as (1, T, D), the gate as (H, N, 1)."""
    if name.endswith("gate.weight") and tensor.ndim == 3:
        return tensor.squeeze(2)
    return tensor.squeeze(0).squeeze(0) if tensor.ndim == 3 else tensor


def _unwrapped(stored: Stored) -> Stored:
    found: Mapping[str, Tensor] = {name.removeprefix(WRAPPER): tensor for name, tensor in stored.tensors.items()}
    return Stored(stored.path, found, stored.container, stored.config)
