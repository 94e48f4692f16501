"""Matrices of 8-bit integers: half of bf16's memory, and so twice the speed of decoding."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_rwkv7.ops import linear
from mm_rwkv7.ops.decode import GROUP


class Int8Linear(nn.Module):
    """A linear map without bias whose weights are rounded to 255 steps, each 64 of an output's row between their own
    extremes. Vectors and products keep their precision.

    `weight` is int8 (out, in filled up with zeros to a multiple of 64); of each 64, weight 16 j + i is byte 4 i + j, as
    the compiled step unpacks them fastest. `scales` (out, in / 64) are bf16, because fp16 has no numbers for those of
    small weights; their bits are held as int16, so that a cast of the model leaves them alone.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        """weight: (out, in), floating-point."""
        super().__init__()
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        groups = F.pad(weight.float(), (0, -self.in_features % GROUP)).unflatten(1, (-1, GROUP))
        scales = (groups.abs().amax(-1) / 127).bfloat16()
        steps = (
            (groups / scales.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round_().clamp_(-127, 127)
        )
        steps = steps.to(torch.int8).unflatten(-1, (4, -1)).transpose(-1, -2)
        self.register_buffer("weight", steps.flatten(1))
        self.register_buffer("scales", scales.view(torch.int16))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(out, in)"""
        steps = self.weight.unflatten(1, (-1, GROUP // 4, 4)).transpose(-1, -2).flatten(2)
        groups = steps.to(dtype) * self.scales.view(torch.bfloat16).to(dtype)[..., None]
        return groups.flatten(1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.dequantised(x.dtype))


def quantise(lm: nn.Module) -> None:
    """Replace every linear map of `lm` by its rounded one. Low-rank projections, vectors and the embedding stay: they
    are few, or not multiplied with."""
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight.detach()))
