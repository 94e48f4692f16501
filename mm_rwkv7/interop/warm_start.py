"""The start of an RWKV-7 from an RWKV-6 (x060): what both have is carried over, the rest is initialised, and the result
needs training. Names are BlinkDL's (RWKV-LM, RWKV-v5/src/model.py, RWKV_Tmix_x060 and RWKV_CMix_x060).

Letters: D width, H heads, N head size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_rwkv7.config import MMConfig
from mm_rwkv7.initialisation import initialise_block
from mm_rwkv7.interop import blinkdl
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.variants import RWKV6, variant
from mm_rwkv7.rwkv7 import Block, RWKV7Config
from mm_rwkv7.tokenizer import tokenizer_for

CARRIED = re.compile(
    r"(emb|head)\.weight|ln_out\.(weight|bias)|blocks\.0\.ln0\.(weight|bias)|blocks\.\d+\.("
    r"ln[12]\.(weight|bias)|att\.(receptance|key|value|output)\.weight|att\.ln_x\.(weight|bias)|"
    r"ffn\.(key|value)\.weight|ffn\.time_maa_k)"
)
DROPPED = re.compile(
    r"blocks\.\d+\.(att\.(time_maa_(x|[rwkvg]|w[12])|time_decay(_w[12])?|time_faaaa|gate\.weight)|"
    r"ffn\.(receptance\.weight|time_maa_r))"
)
HEADS = "blocks.0.att.time_faaaa"  # (H, N)


@dataclass(frozen=True)
class WarmStart:
    """The new model, and the names, `*` for the layer's number, of what it took over from the old one, what begins
    anew, and what of the old one was left."""

    checkpoint: Checkpoint
    carried: tuple[str, ...]
    initialised: tuple[str, ...]
    dropped: tuple[str, ...]


def warm_start(stored: Stored) -> WarmStart:
    """Begin an RWKV-7 from an RWKV-6. Raises ValueError for anything else, and for a v6 state, which has no equal."""
    if (found := variant(stored.tensors)) != RWKV6:
        raise ValueError(f"{stored.path} holds {found or 'no RWKV-6'}, a warm start needs {RWKV6}")
    if states := [name for name in stored.tensors if name.endswith(".time_state")]:
        raise ValueError(f"{stored.path} holds a state ({states[0]}): a state of RWKV-6 has no equal in RWKV-7")
    if others := [n for n in stored.tensors if not (CARRIED.fullmatch(n) or DROPPED.fullmatch(n))]:
        raise ValueError(f"{stored.path} is not plain RWKV-6: unexpected {', '.join(others)}")
    old = {name.replace(".time_maa_k", ".x_k"): t for name, t in stored.tensors.items() if CARRIED.fullmatch(name)}
    carried = blinkdl.ours(old)
    config = _config(stored, carried)
    started = _initialised(config, carried)
    tensors = {f"lm.{name}": tensor for name, tensor in (started | carried).items()}
    return WarmStart(
        Checkpoint(
            "RWKV-7 begun from RWKV-6",
            MMConfig(config, tokenizer=tokenizer_for(config.vocab_size)),
            tensors,
            stored.path,
            lambda name: blinkdl.spell(name.removeprefix("lm.")),
        ),
        _kinds(carried),
        _kinds(started),
        _kinds({name: t for name, t in stored.tensors.items() if DROPPED.fullmatch(name)}),
    )


def _config(stored: Stored, carried: Mapping[str, Tensor]) -> RWKV7Config:
    needed = {HEADS: stored.tensors, "emb.weight": carried, "blocks.0.channel_mix.key.weight": carried}
    if missing := [name for name, where in needed.items() if name not in where or where[name].ndim < 2]:
        raise ValueError(f"{stored.path} does not tell the sizes of its language model: missing {', '.join(missing)}")
    rows, width = carried["emb.weight"].shape
    return RWKV7Config(
        vocab_size=rows,
        width=width,
        layers=len({name.split(".")[1] for name in carried if name.startswith("blocks.")}),
        head_size=stored.tensors[HEADS].shape[1],
        decay_rank=_rank(1.8 * width**0.5),
        iclr_rank=_rank(1.8 * width**0.5),
        value_rank=_rank(1.3 * width**0.5),
        gate_rank=_rank(0.6 * width**0.8),
        ffn_width=carried["blocks.0.channel_mix.key.weight"].shape[0],
    )


def _rank(size: float) -> int:
    """A new model's rank, as RWKV-LM's trainer chooses it: nothing in the old model has this shape."""
    return max(32, round(size / 32) * 32)


def _initialised(config: RWKV7Config, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `carried` lacks of every block, matrices in the old model's type."""
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in range(config.layers):
            block = Block(config, layer)
            initialise_block(block, config, layer)
            for name, parameter in block.named_parameters(f"blocks.{layer}"):
                if name not in carried and not _must_be_carried(name):
                    dtype = carried["emb.weight"].dtype if parameter.ndim > 1 else torch.float32
                    found[name] = parameter.detach().to(dtype)
    return found


def _must_be_carried(name: str) -> bool:
    return CARRIED.fullmatch(blinkdl.spell(name).replace(".ffn.x_k", ".ffn.time_maa_k")) is not None


def _kinds(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(sorted({re.sub(r"^blocks\.\d+\.", "blocks.*.", name) for name in tensors}))
