"""Where training begins: every parameter of RWKV-7 as the reference trainer (RWKV-LM train_temp) sets it."""

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from mm_rwkv7.rwkv7 import RWKV7, Block, RWKV7Config, TimeMix


def initialise(model: RWKV7) -> None:
    """Set every parameter to the reference trainer's start, which decides how well it trains."""
    config = model.config
    nn.init.uniform_(model.emb.weight, -1e-4, 1e-4)
    nn.init.orthogonal_(model.head.weight, gain=0.5 * math.sqrt(max(1.0, config.vocab_size / config.width)))
    for layer, block in enumerate(cast("Iterable[Block]", model.blocks)):
        initialise_block(block, config, layer)


@torch.no_grad()
def initialise_block(block: Block, config: RWKV7Config, layer: int) -> None:
    """Set the parameters of one block, but for its norms' ones and zeros, to the reference trainer's start."""
    D, N = config.width, config.head_size
    depth = layer / max(1, config.layers - 1)  # 0 at the first layer, 1 at the last
    height = 1 - layer / config.layers  # 1 at the first layer, almost 0 at the last
    n = torch.arange(D, dtype=torch.float32)
    channel, ramp = n / D, n / max(1, D - 1)
    centred = (n % N - (N - 1) / 2) / ((N - 1) / 2)
    zigzag, slope = centred * centred.abs(), ramp - 0.5

    mix = block.time_mix
    for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
        getattr(mix, f"x_{name}").copy_(1 - channel ** (power * height))
    mix.w0.copy_(-5.5 + 6 * ramp ** (1 + depth**0.3) + 2.5 * zigzag)
    mix.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * slope)
    if layer > 0:
        mix.v0.copy_(0.73 - 0.4 * slope)
    mix.k_k.copy_(0.71 - 0.1 * slope)
    mix.k_a.fill_(1.02)
    mix.r_k.fill_(-0.04)
    for down, up in _low_rank_pairs(mix):
        nn.init.zeros_(down)
        nn.init.orthogonal_(up, gain=0.1 * math.sqrt(max(1.0, up.shape[0] / up.shape[1])))
    bound = 0.5 / math.sqrt(D)
    nn.init.uniform_(mix.receptance.weight, -bound, bound)
    nn.init.uniform_(mix.key.weight, -0.1 * bound, 0.1 * bound)
    nn.init.uniform_(mix.value.weight, -bound, bound)
    nn.init.zeros_(mix.output.weight)
    mix.ln_x.weight.fill_(((1 + layer) / config.layers) ** 0.7)

    block.channel_mix.x_k.copy_(1 - channel ** (height**4))
    nn.init.uniform_(block.channel_mix.key.weight, -bound, bound)
    nn.init.zeros_(block.channel_mix.value.weight)


def _low_rank_pairs(mix: TimeMix) -> Iterator[tuple[Tensor, Tensor]]:
    for name in "wagv" if mix.layer > 0 else "wag":
        yield getattr(mix, f"{name}1"), getattr(mix, f"{name}2")
