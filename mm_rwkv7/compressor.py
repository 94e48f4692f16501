"""VisualRWKV 7.03's visual token compressor: RWKV-7 blocks read the tokens of a picture, every second block from the
last to the first, and an average makes fewer of them.

Letters: M tokens of one picture, all of its tiles in order, D width.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from mm_rwkv7.rwkv7 import Block, RWKV7Config
from mm_rwkv7.state import State


@dataclass(frozen=True)
class CompressorConfig:
    """`tokens` come out for a picture, whatever its size (7.03), or with `per_tile` for each of its tiles (7.04).
    The blocks have the sizes of the language model's."""

    layers: int
    tokens: int
    per_tile: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1 or self.tokens < 1:
            raise ValueError(f"the compressor has {self.layers} layers and {self.tokens} tokens, expected 1 of each")

    def count(self, tiles: int) -> int:
        """Tokens for a picture of so many tiles."""
        return self.tokens * tiles if self.per_tile else self.tokens


class Compressor(nn.Module):
    """x (1, M, D) -> (1, `config.count(tiles)`, D)."""

    def __init__(self, config: CompressorConfig, lm: RWKV7Config) -> None:
        super().__init__()
        self.config = config
        self.sizes = replace(lm, layers=config.layers)
        self.ln0 = nn.LayerNorm(lm.width)
        self.blocks = nn.ModuleList(Block(self.sizes, layer) for layer in range(config.layers))
        self.ln_out = nn.LayerNorm(lm.width)

    def forward(self, x: Tensor, tiles: int) -> Tensor:
        sizes = self.sizes
        empty = State.zeros(sizes.layers, len(x), sizes.heads, sizes.head_size, x.dtype, x.device)
        x, v_first = self.ln0(x), None
        for block, state in zip(self.blocks, empty.layers, strict=True):
            x, _, v_first = block(x, state, v_first, None)
            x, v_first = x.flip(1), v_first.flip(1)
        if sizes.layers % 2:
            x = x.flip(1)
        x = self.ln_out(x).transpose(1, 2)
        return F.adaptive_avg_pool1d(x, self.config.count(tiles)).transpose(1, 2)
