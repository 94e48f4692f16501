"""WavLM, as `transformers.WavLMModel`, read after its last layer as WorldRWKV reads it (github.com/JL-er/WorldRWKV at
f15e179, world/encoder/speech_encoder.py).

There the base and the large model get every sound whole, with mean 0 and variance 1: Microsoft publishes no tokenizer
with them, so the project falls back on HuBERT's processor, which normalises. Sounds of more than 1023 tokens, 40.9 s,
were left out of the training.

Letters: W windows, F samples in a window, T tokens, D width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.published import fetch
from encoders.sound import Count, SoundEncoder
from encoders.waveform import Waveform

KERNELS = (10, 3, 3, 3, 3, 2, 2)  # of the convolutions, in samples of what each reads
STRIDES = (5, 2, 2, 2, 2, 2, 2)
SHORTEST = 400  # samples under one token
MOST_POSITIONS = 16  # groups of the convolution that tells positions


@dataclass(frozen=True)
class WavLMConfig:
    """Sizes; the defaults are those of wavlm-large. `norm_first` says whether norms come before what they are for, and
    in every convolution; in the base models they come after, and in the first convolution only. `name` is the Hub
    repository with the published weights."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    channels: int = 512
    norm_first: bool = True
    normalise: bool = True
    frontend: Waveform = field(default_factory=Waveform)
    name: str = ""
    kind: str = "wavlm"

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % MOST_POSITIONS:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads} and of {MOST_POSITIONS}")
        if self.frontend.frames < SHORTEST:
            raise ValueError(f"the window has {self.frontend.frames} samples, expected at least {SHORTEST}")


class WavLM(SoundEncoder):
    """windows (W, F), frames (W,) that are samples of sound -> features (W, T, D), a token every 20 ms, zero where
    there is no sound.

    No window sees the silence after its sound. Weights are named `body.` and then as transformers names them.
    """

    def __init__(self, config: WavLMConfig, pretrained: bool = False) -> None:
        from transformers import WavLMConfig as Sizes
        from transformers import WavLMModel

        super().__init__()
        self.width, self.frontend, self.normalise = config.width, config.frontend, config.normalise
        self.grid = (self.moments(config.frontend.frames), 1)
        sizes = Sizes(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            conv_dim=(config.channels,) * len(KERNELS),
            conv_kernel=KERNELS,
            conv_stride=STRIDES,
            feat_extract_norm="layer" if config.norm_first else "group",
            do_stable_layer_norm=config.norm_first,
            hidden_dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=False,
        )
        self.body = WavLMModel(sizes)
        if pretrained:
            self.body.load_state_dict(fetch(WavLMModel, config.name).state_dict())

    def moments(self, frames: Count) -> Count:
        # So many samples as `_seen` gives, through the convolutions.
        frames = frames + (SHORTEST - frames) * (frames < SHORTEST)
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            frames = (frames - kernel) // stride + 1
        return frames

    def forward(self, windows: Tensor, frames: Tensor) -> Tensor:
        weights = next(self.body.parameters())
        features = torch.zeros(len(windows), self.tokens, self.width, dtype=weights.dtype, device=windows.device)
        for row, length in enumerate(frames.tolist()):  # attention over one window takes a quarter of a gigabyte
            found = self.body(self._seen(windows[row : row + 1], length).to(weights.dtype)).last_hidden_state[0]
            features[row, : len(found)] = found
        return features

    def _seen(self, window: Tensor, length: int) -> Tensor:
        """The samples of sound in a window (1, F), with mean 0 and variance 1 where it was trained so; there must be
        some."""
        samples = window[:, :length].float()
        if self.normalise:
            variance, mean = torch.var_mean(samples, correction=0)
            samples = (samples - mean) / (variance + 1e-7).sqrt()
        return F.pad(samples, (0, max(0, SHORTEST - length)))


# How torch.save named the two parts of a weight that is a direction and a length, before torch 2.
_OLD = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def own_name(name: str) -> str:
    """The name in `WavLM` of a published tensor, or of one that WorldRWKV saves."""
    stem, _, last = name.removeprefix("wavlm.").rpartition(".")
    return f"body.{stem}.{_OLD.get(last, last)}" if stem else f"body.{last}"
