"""Maps a tower's features into the embedding space of the language model.

Letters: B batch, M feature tokens per picture, E width of the tower, D width of the language model.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ProjectorConfig:
    """Our own. `positions` are the rows and columns of the tower's grid, each with a learned vector that tells where a
    feature lies when the tower's own features do not (empty: none). `summary` adds one more token, the mean of the
    features."""

    input_width: int
    hidden_width: int
    positions: tuple[int, ...] = ()
    summary: bool = False
    kind: str = "mlp"

    def __post_init__(self) -> None:
        if len(self.positions) not in (0, 2) or min(self.positions, default=1) < 1:
            raise ValueError(f"positions are {list(self.positions)}, expected rows and columns, or none")
        _check_hidden(self.hidden_width)


@dataclass(frozen=True)
class GatedProjectorConfig:
    """VisualRWKV's: `y = LayerNorm(W (x * sigmoid(G x)))`."""

    input_width: int
    kind: str = "gated"


@dataclass(frozen=True)
class LinearProjectorConfig:
    """VisualRWKV's other one: a matrix."""

    input_width: int
    kind: str = "linear"


@dataclass(frozen=True)
class AdapterProjectorConfig:
    """WorldRWKV's: `y + LayerNorm(y)`, where y is a two-layer perceptron with ReLU of the features, or of every second
    one's neighbourhood with a `convolution`."""

    input_width: int
    hidden_width: int
    convolution: bool = False
    kind: str = "adapter"

    def __post_init__(self) -> None:
        _check_hidden(self.hidden_width)


@dataclass(frozen=True)
class SpeechProjectorConfig:
    """WorldRWKV's for sounds: the neighbourhood of every second feature, then a two-layer perceptron with ReLU."""

    input_width: int
    hidden_width: int
    kind: str = "speech"

    def __post_init__(self) -> None:
        _check_hidden(self.hidden_width)


def _check_hidden(width: int) -> None:
    if width < 1:
        raise ValueError(f"hidden_width is {width}, expected at least 1")


AnyProjectorConfig = (
    ProjectorConfig | GatedProjectorConfig | LinearProjectorConfig | AdapterProjectorConfig | SpeechProjectorConfig
)


class Projector(nn.Module):
    """features (B, M, E) -> (B, `tokens(M)`, D)."""

    def tokens(self, cells: int) -> int:
        """How many tokens come out for a picture of so many features. Raises ValueError where they cannot be read."""
        return cells

    def under(self, first: int, cells: int) -> int:
        """How many of the tokens for `cells` features have some of the `first` ones under them."""
        return first

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...


def build_projector(config: AnyProjectorConfig, output_width: int) -> Projector:
    """The projector that `config` describes, into an embedding space of `output_width`."""
    match config:
        case GatedProjectorConfig():
            return GatedProjector(config, output_width)
        case LinearProjectorConfig():
            return LinearProjector(config, output_width)
        case AdapterProjectorConfig():
            return AdapterProjector(config, output_width)
        case SpeechProjectorConfig():
            return SpeechProjector(config, output_width)
        case _:
            return PerceptronProjector(config, output_width)


class PerceptronProjector(Projector):
    """LayerNorm, a two-layer perceptron, and a LayerNorm that brings the features to one scale; then their
    positions."""

    def __init__(self, config: ProjectorConfig, output_width: int) -> None:
        super().__init__()
        self.summary = config.summary
        self.ln_in = nn.LayerNorm(config.input_width)
        self.up = nn.Linear(config.input_width, config.hidden_width)
        self.act = nn.GELU()
        self.down = nn.Linear(config.hidden_width, output_width)
        self.ln_out = nn.LayerNorm(output_width)
        # At half the scale of the features: vectors that begin at zero stay too small to be heard beside them.
        rows, columns = config.positions or (0, 0)
        self.rows = nn.Parameter(torch.randn(rows, output_width) / 3) if rows else None
        self.columns = nn.Parameter(torch.randn(columns, output_width) / 3) if columns else None

    def tokens(self, cells: int) -> int:
        if self.rows is not None and self.columns is not None and len(self.rows) * len(self.columns) != cells:
            raise ValueError(
                f"the projector has positions for {len(self.rows)} x {len(self.columns)} cells, a picture has {cells}"
            )
        return cells + self.summary

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.shape[1]
        if self.summary:
            features = torch.cat([features, features.mean(dim=1, keepdim=True)], dim=1)
        x: Tensor = self.ln_out(self.down(self.act(self.up(self.ln_in(features)))))
        if self.rows is None or self.columns is None:
            return x
        positions = (self.rows[:, None] + self.columns).flatten(0, 1)
        return torch.cat([x[:, :tokens] + positions, x[:, tokens:]], dim=1)


class GatedProjector(Projector):
    def __init__(self, config: GatedProjectorConfig, output_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(config.input_width, config.input_width, bias=False)
        self.o_proj = nn.Linear(config.input_width, output_width, bias=False)
        self.ln_v = nn.LayerNorm(output_width)

    def forward(self, features: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(features))
        x: Tensor = self.ln_v(self.o_proj(features * gate))
        return x


class LinearProjector(Projector):
    def __init__(self, config: LinearProjectorConfig, output_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_width, config.input_width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # nn.Linear's own start

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight)


class AdapterProjector(Projector):
    """`pre_norm` comes after the perceptron; its name is that of the published files."""

    def __init__(self, config: AdapterProjectorConfig, output_width: int) -> None:
        super().__init__()
        width = config.input_width
        self.conv = nn.Conv1d(width, width, kernel_size=3, stride=2, bias=False) if config.convolution else None
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden_width), nn.ReLU(), nn.Linear(config.hidden_width, output_width)
        )
        self.pre_norm = nn.LayerNorm(output_width)

    def tokens(self, cells: int) -> int:
        if self.conv is None:
            return cells
        if cells < 3:
            raise ValueError(f"the projector's convolution needs at least 3 tokens, a picture has {cells}")
        return (cells - 3) // 2 + 1

    def under(self, first: int, cells: int) -> int:
        return first if self.conv is None else min((first + 1) // 2, self.tokens(cells))

    def forward(self, features: Tensor) -> Tensor:
        if self.conv is not None:
            features = self.conv(features.transpose(1, 2)).transpose(1, 2)
        x = self.mlp(features)
        return x + self.pre_norm(x)


class SpeechProjector(Projector):
    """A file does not say how its convolution is padded: two zeros to either side since March 2025, of when the
    published models are."""

    def __init__(self, config: SpeechProjectorConfig, output_width: int) -> None:
        super().__init__()
        width = config.hidden_width
        self.conv = nn.Conv1d(config.input_width, width, kernel_size=3, stride=2, padding=2)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, output_width))

    def tokens(self, cells: int) -> int:
        return (cells + 1) // 2 + 1

    def under(self, first: int, cells: int) -> int:
        return self.tokens(first)

    def forward(self, features: Tensor) -> Tensor:
        x: Tensor = self.mlp(self.conv(features.mT).mT)
        return x
