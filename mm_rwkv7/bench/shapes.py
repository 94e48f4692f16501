"""Models of the published sizes with random weights: what is measured where the words do not matter."""

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import cast

import torch

from mm_rwkv7.initialisation import initialise_block
from mm_rwkv7.interop.fla import LOW_RANK
from mm_rwkv7.rwkv7 import RWKV7, Block, RWKV7Config

WORLD = 65536
# Width, layers, and the ranks of decay, iclr, value and gate as the published files have them. The ranks of 2.9B and
# 7.2B are what the older formula gives: no file of theirs was seen.
SIZES = {
    "0.1B": (768, 12, 64, 64, 32, 128),
    "0.4B": (1024, 24, 64, 64, 32, 128),
    "1.5B": (2048, 24, 96, 96, 64, 256),
    "2.9B": (2560, 32, 96, 96, 64, 320),
    "7.2B": (4096, 32, 128, 128, 96, 480),
    "tiny": (128, 2, 16, 16, 8, 24),
}


def add_shape(parser: ArgumentParser, default: str = "0.1B") -> None:
    parser.add_argument("--shape", default=default, help=f"one of {', '.join(SIZES)} (default {default})")


def shape(name: str) -> RWKV7Config:
    """The sizes of a published model; "tiny" is for trying a command out."""
    if name not in SIZES:
        raise ValueError(f"--shape is {name!r}, expected one of {', '.join(SIZES)}")
    width, layers, decay, iclr, value, gate = SIZES[name]
    vocabulary = 512 if name == "tiny" else WORLD
    return RWKV7Config(vocabulary, width, layers, decay_rank=decay, iclr_rank=iclr, value_rank=value, gate_rank=gate)


def random_model(config: RWKV7Config, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> RWKV7:
    """A model in which every weight is heard, so that two implementations that agree on its logits agree on all of it:
    vectors as training begins with them, matrices of unit gain. Half of the channel mix's squared ReLUs are zero; of
    trained models, four fifths are."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = RWKV7(config)
        for layer, block in enumerate(cast("Iterable[Block]", model.blocks)):
            initialise_block(block, config, layer)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name != "emb.weight":
                inputs = parameter.shape[0 if LOW_RANK.search(name) else 1]
                parameter.normal_(std=inputs**-0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.to(device, dtype).eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
