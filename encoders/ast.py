"""The Audio Spectrogram Transformer, as `transformers.ASTModel`, and its published weights under either of their names.

Letters: W windows, F frames, M mel bins, T tokens, D width.
"""

import re
from dataclasses import dataclass, field

from torch import Tensor

from encoders.sound import SoundEncoder
from encoders.spectrogram import Spectrogram

PATCH = 16


@dataclass(frozen=True)
class ASTConfig:
    """Sizes; the defaults are those of the published model. `stride` is how far patches of 16 lie apart in both
    directions."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    stride: int = 10
    spectrogram: Spectrogram = field(default_factory=Spectrogram)
    kind: str = "ast"

    def __post_init__(self) -> None:
        if min(self.spectrogram.frames, self.spectrogram.bins) < PATCH:
            raise ValueError(f"the spectrogram is smaller than a patch of {PATCH}")
        if self.width % self.heads or self.stride < 1:
            raise ValueError(f"width {self.width}, heads {self.heads} and stride {self.stride} do not fit together")

    @property
    def grid(self) -> tuple[int, int]:
        frames, bins = ((size - PATCH) // self.stride + 1 for size in (self.spectrogram.frames, self.spectrogram.bins))
        return frames, bins


class AST(SoundEncoder):
    """windows (W, F, M), frames (W,) -> features (W, T, D) after the last norm, moment by moment.

    It was trained on windows filled up with zeros and sees them: `frames` is not looked at. Weights are named `body.`
    and then as transformers names them.
    """

    def __init__(self, config: ASTConfig) -> None:
        from transformers import ASTConfig as Sizes
        from transformers import ASTModel

        super().__init__()
        self.width, self.grid, self.frontend = config.width, config.grid, config.spectrogram
        self.spectrogram = config.spectrogram
        sizes = Sizes(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            time_stride=config.stride,
            frequency_stride=config.stride,
            max_length=config.spectrogram.frames,
            num_mel_bins=config.spectrogram.bins,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.body = ASTModel(sizes)

    def forward(self, windows: Tensor, frames: Tensor) -> Tensor:
        moments, bins = self.grid
        features: Tensor = self._read(windows)[:, 2:]
        return features.unflatten(1, (bins, moments)).transpose(1, 2).flatten(1, 2)  # they lie bin by bin

    def summary(self, windows: Tensor, frames: Tensor) -> Tensor:
        """-> the mean of the two class tokens (W, D), which its published classifiers read."""
        return self._read(windows)[:, :2].mean(1)

    def _read(self, windows: Tensor) -> Tensor:
        """-> the class tokens, then the patches (W, 2 + T, D)."""
        weights = next(self.body.parameters())
        features: Tensor = self.body(self.spectrogram.normalise(windows).to(weights.dtype)).last_hidden_state
        return features


# Where a part of the original's keys (github.com/YuanGongND/ast) and of older Hugging Face files' goes.
_RENAMED = (
    (r"^(module\.)?v\.", ""),
    (r"^audio_spectrogram_transformer\.", ""),
    (r"^(cls_token)$", r"embeddings.\1"),
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^(encoder\.layer|blocks)\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(layers\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"^(layers\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"^norm\.", "layernorm."),
)
_HEADS = re.compile(r"^(module\.)?mlp_head\.|^classifier\.|^(module\.)?v\.head(_dist)?\.")


def own_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint's tensors under the names of `AST`, without its classifiers: Hugging Face's keys, old and
    new, or the original's, whose query, key and value are one matrix."""
    found = {}
    for name, tensor in tensors.items():
        if _HEADS.match(name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found["body." + name.replace(".attn.qkv.", f".attention.{letter}_proj.")] = part
        else:
            found["body." + name] = tensor
    return found
