"""RWKV-7 over the patches of a spectrogram, in both directions (A-RWKV, arXiv 2509.02167).

Every token sees its neighbours in time and frequency through a depthwise convolution, where the language model has its
token shift, and all others through two scans with the same weights, forwards and backwards, that a gate merges.

Letters: W windows, F frames, M mel bins, T tokens of a window (moment by moment), D width, H heads, N head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.sound import SoundEncoder
from encoders.spectrogram import Spectrogram

DECAY_FLOOR = -math.exp(-0.5)

# r, log_w, k, v, a, b (W, T, H, N) -> y (W, T, H, N) and the last state: `mm_rwkv7.ops.wkv7`
Scan = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class BiRWKV7Config:
    """Sizes; the defaults are those of A-RWKV's tiny model. Published are `TINY`, `SMALL` and `BASE`.

    patch: the frames and the bins under one token.
    stem: widths of convolutions before the patches, each of which halves the picture; with few sounds to learn from
        they learn faster than patches of the bare spectrogram (arXiv 2106.14881).
    norm: whether one follows the last block; A-RWKV's is in its classifier, after the mean.
    hears_padding: whether the zeros that follow a sound are heard as well, as A-RWKV hears them.
    """

    width: int = 192
    layers: int = 12
    head_size: int = 64
    decay_rank: int = 32
    iclr_rank: int = 32
    value_rank: int = 32
    gate_rank: int = 32
    patch: tuple[int, int] = (16, 16)
    stem: tuple[int, ...] = ()
    spectrogram: Spectrogram = field(default_factory=Spectrogram)
    norm: bool = True
    hears_padding: bool = False
    kind: str = "birwkv7"

    def __post_init__(self) -> None:
        if self.width % self.head_size:
            raise ValueError(f"width {self.width} is not a multiple of head_size {self.head_size}")
        shrinking = 2 ** len(self.stem)
        sizes = ("frames", self.spectrogram.frames), ("bins", self.spectrogram.bins)
        for (name, size), patch in zip(sizes, self.patch, strict=True):
            if patch < 1 or patch % shrinking:
                raise ValueError(f"a patch has {patch} {name}, expected a multiple of the stem's {shrinking}")
            if size % patch:
                raise ValueError(f"the spectrogram's {name} are {size}, expected a multiple of the patch, {patch}")

    @property
    def grid(self) -> tuple[int, int]:
        return self.spectrogram.frames // self.patch[0], self.spectrogram.bins // self.patch[1]


TINY = BiRWKV7Config()
SMALL = BiRWKV7Config(width=384, gate_rank=64)
BASE = BiRWKV7Config(width=768, decay_rank=64, iclr_rank=64, gate_rank=128)
# What the published weights hear (github.com/Jiayu-Xiong/AudioRWKV at 0341467, dataloader.py and run.py).
PUBLISHED_SPECTROGRAM = Spectrogram(32_000, 128, 992, mean=-4.421761, scale=4.32408, lowest=50.0, highest=14_000.0)


class ConvShift(nn.Module):
    """What the neighbours on the grid say, less the token itself: a depthwise 3 x 3 convolution."""

    def __init__(self, config: BiRWKV7Config) -> None:
        super().__init__()
        self.bins = config.grid[1]
        self.conv = nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (W, T, D), zero where there is no sound -> (W, T, D)."""
        picture = x.mT.unflatten(2, (-1, self.bins))
        return self.conv(picture).flatten(2).mT - x


class BiTimeMix(nn.Module):
    """RWKV-7's time mixing with a convolution for the token shift and a scan in each direction."""

    w0: nn.Parameter
    w1: nn.Parameter
    w2: nn.Parameter
    a0: nn.Parameter
    a1: nn.Parameter
    a2: nn.Parameter
    v0: nn.Parameter
    v1: nn.Parameter
    v2: nn.Parameter
    g1: nn.Parameter
    g2: nn.Parameter
    k_k: nn.Parameter
    k_a: nn.Parameter

    def __init__(self, config: BiRWKV7Config, layer: int, scan: Scan) -> None:
        super().__init__()
        self.scan = scan
        D, N = config.width, config.head_size
        self.heads = (D // N, N)
        self.shift = ConvShift(config)
        self.mix = nn.Parameter(torch.empty(6, D))  # r, w, k, v, a, g
        for name in ("w0", "a0", "k_k", "k_a"):
            self.register_parameter(name, nn.Parameter(torch.empty(D)))
        ranks = {"w": config.decay_rank, "a": config.iclr_rank, "g": config.gate_rank}
        if layer > 0:
            self.v0 = nn.Parameter(torch.empty(D))
            ranks["v"] = config.value_rank
        for name, rank in ranks.items():
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(D, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, D)))
        self.r_k = nn.Parameter(torch.empty(self.heads))
        self.direction = nn.Parameter(torch.empty(self.heads))
        self.receptance, self.key, self.value, self.output = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.ln_x = nn.GroupNorm(self.heads[0], D, eps=N * 1e-5)

    def forward(self, x: Tensor, v_first: Tensor | None, heard: Tensor) -> tuple[Tensor, Tensor]:
        """x (W, T, D), heard (W, T, 1) bool -> (out (W, T, D), the first layer's values)."""
        dx = self.shift(x)
        xr, xw, xk, xv, xa, xg = torch.addcmul(x, dx, self.mix[:, None, None]).unbind()
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = DECAY_FLOOR * torch.sigmoid(self.w0.float() + (torch.tanh(xw @ self.w1) @ self.w2).float())
        iclr = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2).to(v.dtype))
        kappa = F.normalize((k * self.k_k).unflatten(2, self.heads).float(), dim=-1, eps=1e-12).flatten(2).to(r.dtype)
        k = k * torch.addcmul(1 - self.k_a, iclr, self.k_a)
        silent = ~heard
        log_w, k, b = (t.masked_fill(silent, 0) for t in (log_w, k, kappa * iclr))
        inputs = (r, log_w, k, v, -kappa, b)
        y = self._both_ways(tuple(t.unflatten(2, self.heads) for t in inputs), dx.unflatten(2, self.heads))
        y = self.ln_x(y.flatten(2).flatten(0, 1)).view_as(x)
        r, k, v = (t.unflatten(2, self.heads) for t in (r, k, v))
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output((y + bonus.flatten(2)) * gate), v_first

    def _both_ways(self, inputs: tuple[Tensor, ...], dx: Tensor) -> Tensor:
        """inputs and dx (W, T, H, N) -> (W, T, H, N), each head's share of the two directions chosen by the gate."""
        y, _ = self.scan(*(torch.cat([t, t.flip(1)]) for t in inputs))
        forwards, backwards = y.chunk(2)
        share = torch.sigmoid((dx * self.direction).sum(-1, keepdim=True))
        return torch.lerp(backwards.flip(1), forwards, share.to(y.dtype))


class ChannelMix(nn.Module):
    """Squared-ReLU feed-forward on the shifted token."""

    def __init__(self, config: BiRWKV7Config) -> None:
        super().__init__()
        self.shift = ConvShift(config)
        self.x_k = nn.Parameter(torch.empty(config.width))
        self.key = nn.Linear(config.width, 4 * config.width)
        self.value = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.value(torch.relu(self.key(torch.addcmul(x, self.shift(x), self.x_k))).square())
        return out


class Block(nn.Module):
    def __init__(self, config: BiRWKV7Config, layer: int, scan: Scan) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.ln2 = nn.LayerNorm(config.width)
        self.time_mix = BiTimeMix(config, layer, scan)
        self.channel_mix = ChannelMix(config)

    def forward(self, x: Tensor, v_first: Tensor | None, heard: Tensor) -> tuple[Tensor, Tensor]:
        mixed, v_first = self.time_mix(self.ln1(x) * heard, v_first, heard)
        x = x + mixed
        return x + self.channel_mix(self.ln2(x) * heard), v_first


class Convolution(nn.Module):
    """One layer of the stem: half the size, normalised over the channels so that no place knows of another's."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, made, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(made)

    def forward(self, picture: Tensor) -> Tensor:
        """(W, channels, F, M), channels last in memory -> (W, channels, F / 2, M / 2)."""
        return torch.relu(self.norm(self.conv(picture).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class BiRWKV7(SoundEncoder):
    """windows (W, F, M), frames (W,) -> features (W, T, D), zero where there is no sound.

    Windows may be shorter than the spectrogram's, a multiple of the patch. What follows the longest sound costs
    nothing. `scan` is the recurrence, `mm_rwkv7.ops.wkv7`.
    """

    def __init__(self, config: BiRWKV7Config, scan: Scan) -> None:
        super().__init__()
        self.width, self.grid, self.frontend = config.width, config.grid, config.spectrogram
        self.spectrogram, self.hears_padding = config.spectrogram, config.hears_padding
        self.patch = config.patch[0]
        widths = (1, *config.stem)
        self.stem = nn.Sequential(*map(Convolution, widths[:-1], widths[1:]))
        time, pitch = (size >> len(config.stem) for size in config.patch)
        self.patches = nn.Conv2d(widths[-1], config.width, (time, pitch), stride=(time, pitch))
        self.positions = nn.Parameter(torch.empty(self.tokens, config.width))
        self.blocks = nn.ModuleList(Block(config, layer, scan) for layer in range(config.layers))
        self.ln_out = nn.LayerNorm(config.width) if config.norm else nn.Identity()
        initialise(self)

    def forward(self, windows: Tensor, frames: Tensor) -> Tensor:
        tokens = windows.shape[1] // self.patch * self.grid[1]
        if self.hears_padding:
            frames = torch.full_like(frames, windows.shape[1])
        windows = windows[:, : -(-int(frames.max()) // self.patch) * self.patch]
        picture = self.spectrogram.normalise(windows).to(self.positions.dtype)[:, None]
        if len(self.stem):  # its convolutions reach beyond the end of the sound
            there = torch.arange(windows.shape[1], device=frames.device) < frames[:, None]
            picture = (picture * there[:, None, :, None]).contiguous(memory_format=torch.channels_last)
        x = self.patches(self.stem(picture)).flatten(2).mT
        x = x + self.positions[: x.shape[1]]
        heard = self.heard(frames)[:, : x.shape[1], None]
        v_first = None
        for block in self.blocks:
            x, v_first = block(x, v_first, heard)
        return F.pad(self.ln_out(x) * heard, (0, 0, 0, tokens - x.shape[1]))

    def heard(self, frames: Tensor) -> Tensor:
        return super().heard(torch.full_like(frames, self.frontend.frames) if self.hears_padding else frames)


def initialise(encoder: BiRWKV7) -> None:
    """Random weights as A-RWKV begins with: the language model's, shifts and gates near nothing."""
    layers = len(encoder.blocks)
    D = encoder.width
    channel = torch.arange(D) / D
    line = torch.arange(D) / (D - 1)
    with torch.no_grad():
        nn.init.trunc_normal_(encoder.positions, std=0.02)
        nn.init.trunc_normal_(encoder.patches.weight, std=0.02)
        for convolution in encoder.stem:
            assert isinstance(convolution, Convolution)
            nn.init.kaiming_normal_(convolution.conv.weight, nonlinearity="relu")
        for layer, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            _initialise_time_mix(block.time_mix, channel, line, layer, layers)
            mix = block.channel_mix
            mix.x_k.copy_(1 - channel ** ((1 - layer / layers) ** 4))
            nn.init.trunc_normal_(mix.shift.conv.weight, std=1e-4)
            nn.init.orthogonal_(mix.key.weight)
            for tensor in (mix.key.bias, mix.value.weight, mix.value.bias):
                tensor.zero_()


def _initialise_time_mix(mix: BiTimeMix, channel: Tensor, line: Tensor, layer: int, layers: int) -> None:
    _, N = mix.heads
    depth, left = layer / max(1, layers - 1), 1 - layer / layers
    place = ((torch.arange(len(line)) % N) - (N - 1) / 2) / ((N - 1) / 2)
    zigzag = place * place.abs()
    for row, power in zip(mix.mix, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
        row.copy_(1 - channel ** (power * left))
    mix.w0.copy_(-5.5 + 6 * line ** (1 + depth**0.3) + 2.5 * zigzag)
    mix.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * (line - 0.5))
    mix.k_k.copy_(0.71 - 0.1 * (line - 0.5))
    mix.k_a.fill_(1.02)
    mix.r_k.fill_(-0.04)
    if layer > 0:
        mix.v0.copy_(0.73 - 0.4 * (line - 0.5))
    for name in ("w", "a", "g", "v"):
        if hasattr(mix, f"{name}1"):
            getattr(mix, f"{name}1").zero_()
            nn.init.orthogonal_(getattr(mix, f"{name}2"), gain=0.1)
    for tensor in (mix.direction, mix.shift.conv.weight):
        nn.init.trunc_normal_(tensor, std=1e-4)
    for linear, gain in ((mix.receptance, 1), (mix.key, 0.1), (mix.value, 1)):
        nn.init.orthogonal_(linear.weight, gain=gain)
    mix.output.weight.zero_()
    mix.ln_x.weight.fill_(((1 + layer) / layers) ** 0.7)
