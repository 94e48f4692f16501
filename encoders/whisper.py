"""Whisper's encoder, as `transformers.WhisperModel` has it, read after its last norm as WorldRWKV reads it
(github.com/JL-er/WorldRWKV at f15e179, world/encoder/whisper_encoder.py).

Letters: W windows, F frames, M mel bins, T tokens, D width.
"""

from dataclasses import dataclass, field

from torch import Tensor

from encoders.logmel import LogMel
from encoders.published import fetch
from encoders.sound import Count, SoundEncoder


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes; the defaults are those of whisper-small. `name` is the Hub repository with the published weights."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    frontend: LogMel = field(default_factory=LogMel)
    name: str = ""
    kind: str = "whisper"

    def __post_init__(self) -> None:
        if self.frontend.frames % 2:
            raise ValueError(f"the window has {self.frontend.frames} frames, expected an even number")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} and heads {self.heads} do not fit together")


class Whisper(SoundEncoder):
    """windows (W, F, M), frames (W,) -> features (W, T, D), a token for every two frames, zero where there is no sound.

    It was trained on windows filled up with silence and hears it. The last token is the one after the sound's last two
    frames, which WorldRWKV keeps. Weights are named `body.` and then as transformers names them.
    """

    def __init__(self, config: WhisperConfig, pretrained: bool = False) -> None:
        from transformers import WhisperConfig as Sizes
        from transformers import WhisperModel
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.width, self.grid, self.frontend = config.width, (config.frontend.frames // 2, 1), config.frontend
        sizes = Sizes(
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.hidden,
            num_mel_bins=config.frontend.bins,
            max_source_positions=self.grid[0],
        )
        self.body = WhisperEncoder(sizes)
        if pretrained:
            self.body.load_state_dict(fetch(WhisperModel, config.name).encoder.state_dict())

    def moments(self, frames: Count) -> Count:
        return frames // 2 + 1 - frames // self.frontend.frames  # a full window has no token after its last

    def forward(self, windows: Tensor, frames: Tensor) -> Tensor:
        weights = next(self.body.parameters())
        features: Tensor = self.body(windows.mT.to(weights.dtype)).last_hidden_state
        return features * self.heard(frames)[..., None]


def own_name(name: str) -> str | None:
    """The name in `Whisper` of a published tensor, or of one that WorldRWKV saves (the encoder's alone); None for those
    of the decoder."""
    name = name.removeprefix("model.")
    if name.startswith(("decoder.", "proj_out.")):
        return None
    return "body." + name.removeprefix("encoder.")
