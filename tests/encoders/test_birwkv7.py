"""The bidirectional encoder against loops over tokens and neighbours, and against itself in shorter windows.

W windows, F frames, M mel bins, T tokens, D width, H heads, N head size.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.birwkv7 import BASE, SMALL, TINY, BiRWKV7, BiRWKV7Config
from encoders.spectrogram import Spectrogram
from mm_rwkv7.ops import wkv7

CONFIG = BiRWKV7Config(width=32, layers=2, head_size=16, spectrogram=Spectrogram(bins=48, frames=80))
STEMMED = replace(CONFIG, stem=(4, 8), patch=(8, 24))


def random_encoder(config: BiRWKV7Config, seed: int) -> BiRWKV7:
    """Weights at which every part has a say."""
    encoder = BiRWKV7(config, wkv7).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter /= max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 1
    return encoder


def neighbours(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """x (T, D) on the grid, weight (D, 1, 3, 3): what lies around each token, weighted, less the token."""
    rows, columns = grid
    out = -x.clone()
    for token in range(rows * columns):
        row, column = divmod(token, columns)
        for i in range(3):
            for j in range(3):
                there = (row + i - 1, column + j - 1)
                if 0 <= there[0] < rows and 0 <= there[1] < columns:
                    out[token] += x[there[0] * columns + there[1]] * weight[:, 0, i, j]
    return out


def one_way(tokens: list[int], r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One head's recurrence over the tokens in the given order: (T, N) each -> y (T, N)."""
    state = r.new_zeros(r.shape[1], r.shape[1])
    y = torch.zeros_like(r)
    for t in tokens:
        state = state * w[t] + torch.outer(state @ a[t], b[t]) + torch.outer(v[t], k[t])
        y[t] = state @ r[t]
    return y


def by_hand(encoder: BiRWKV7, window: Tensor, moments: int) -> Tensor:
    """One window (F, M), of which `moments` rows of the grid are sound -> (moments * columns, D)."""
    config_grid = (moments, encoder.grid[1])
    T = moments * encoder.grid[1]
    picture = encoder.spectrogram.normalise(window)[: moments * 16]
    x = F.conv2d(picture[None, None], encoder.patches.weight, encoder.patches.bias, stride=16)[0].flatten(1).T
    x = x + encoder.positions[:T]
    v_first = None
    for block in encoder.blocks:
        mix = block.time_mix
        H, N = mix.heads
        z = block.ln1(x)
        dx = neighbours(z, mix.shift.conv.weight, config_grid)
        xr, xw, xk, xv, xa, xg = (z + dx * vector for vector in mix.mix)
        r, k, v = mix.receptance(xr), mix.key(xk), mix.value(xv)
        w = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(mix.w0 + torch.tanh(xw @ mix.w1) @ mix.w2))
        a = torch.sigmoid(mix.a0 + xa @ mix.a1 @ mix.a2)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(mix.v0 + xv @ mix.v1 @ mix.v2)
        kappa = (k * mix.k_k).view(T, H, N)
        kappa = (kappa / kappa.norm(dim=-1, keepdim=True)).view(T, -1)
        k = k * (1 + (a - 1) * mix.k_a)
        y = torch.zeros_like(x)
        for h in range(H):
            here = slice(h * N, (h + 1) * N)
            head = [t[:, here] for t in (r, w, k, v, -kappa, kappa * a)]
            forwards, backwards = one_way(list(range(T)), *head), one_way(list(range(T))[::-1], *head)
            share = torch.sigmoid(dx[:, here] @ mix.direction[h])[:, None]
            y[:, here] = share * forwards + (1 - share) * backwards
        y = F.group_norm(y, H, mix.ln_x.weight, mix.ln_x.bias, eps=N * 1e-5)
        for h in range(H):
            here = slice(h * N, (h + 1) * N)
            y[:, here] += (r[:, here] * k[:, here] * mix.r_k[h]).sum(1, keepdim=True) * v[:, here]
        x = x + mix.output(y * (torch.sigmoid(xg @ mix.g1) @ mix.g2))
        z = block.ln2(x)
        ffn = block.channel_mix
        x = x + ffn.value(torch.relu(ffn.key(z + neighbours(z, ffn.shift.conv.weight, config_grid) * ffn.x_k)) ** 2)
    return encoder.ln_out(x)


@torch.no_grad()
@pytest.mark.parametrize("frames", [80, 33, 1])
def test_equals_the_double_loop(frames: int, seed: int) -> None:
    encoder = random_encoder(CONFIG, seed)
    window = 3 * torch.randn(80, 48, generator=torch.Generator().manual_seed(seed))
    found = encoder(window[None], torch.tensor([frames]))[0]
    moments = -(-frames // 16)
    expected = by_hand(deepcopy(encoder).double(), window.double(), moments)
    wrong = (found[: len(expected)] - expected).norm() / expected.norm()
    assert wrong < 1e-5, f"off by {wrong:.1e} (seed {seed})"
    assert not found[len(expected) :].any()


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, STEMMED])
def test_silence_after_the_sound_changes_nothing(config: BiRWKV7Config, seed: int) -> None:
    encoder = random_encoder(config, seed)
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randn(3, 80, 48, generator=generator)
    frames = torch.tensor([80, 48, 17])
    together = encoder(windows, frames)
    noisy = windows.clone()
    noisy[1, 48:] = noisy[2, 32:] = torch.nan
    assert torch.equal(encoder(noisy.nan_to_num(9.0), frames), together), f"seed {seed}"
    for row in range(3):
        alone = encoder(windows[row : row + 1], frames[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-4, msg=f"seed {seed}")


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, STEMMED])
def test_what_follows_the_sound_may_be_left_out(config: BiRWKV7Config, seed: int) -> None:
    encoder = random_encoder(config, seed)
    windows = torch.randn(2, 80, 48, generator=torch.Generator().manual_seed(seed))
    frames = torch.tensor([32, 9])
    whole, cut = encoder(windows, frames), encoder(windows[:, :32], frames)
    assert cut.shape[1] == 32 // config.patch[0] * config.grid[1]
    torch.testing.assert_close(cut, whole[:, : cut.shape[1]], rtol=1e-4, atol=1e-4, msg=f"seed {seed}")
    assert not whole[:, cut.shape[1] :].any()


@torch.no_grad()
def test_the_stem_halves_the_picture_and_normalises_every_place(seed: int) -> None:
    encoder = random_encoder(STEMMED, seed)
    picture = torch.randn(1, 1, 12, 16, generator=torch.Generator().manual_seed(seed))
    expected = picture[0]
    for layer in encoder.stem:
        padded = F.pad(expected, (1, 1, 1, 1))
        rows, columns = (size // 2 for size in expected.shape[1:])
        expected = torch.zeros(layer.conv.out_channels, rows, columns)
        for row in range(rows):
            for column in range(columns):
                around = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                channels = (layer.conv.weight * around).sum((1, 2, 3))
                normal = (channels - channels.mean()) / (channels.var(correction=0) + 1e-5) ** 0.5
                expected[:, row, column] = (normal * layer.norm.weight + layer.norm.bias).clamp(min=0)
    torch.testing.assert_close(encoder.stem(picture)[0], expected, rtol=1e-4, atol=1e-4, msg=f"seed {seed}")


@torch.no_grad()
def test_a_token_hears_what_comes_after_it(seed: int) -> None:
    encoder = random_encoder(CONFIG, seed)
    windows = torch.randn(1, 80, 48, generator=torch.Generator().manual_seed(seed))
    later = windows.clone()
    later[0, -1] += 5
    frames = torch.tensor([80])
    assert (encoder(windows, frames)[0, 0] - encoder(later, frames)[0, 0]).abs().max() > 1e-6, f"seed {seed}"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", [CONFIG, STEMMED])
def test_it_learns(config: BiRWKV7Config, half: bool, seed: int) -> None:
    torch.manual_seed(seed)
    encoder = BiRWKV7(config, wkv7)
    windows, frames = torch.randn(4, 80, 48), torch.tensor([80, 64, 40, 3])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        features = encoder(windows, frames)
    features.square().sum().backward()
    heard = [name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.isfinite().all()]
    assert len(heard) == len(list(encoder.parameters()))


@pytest.mark.parametrize(("config", "millions"), [(TINY, 6), (SMALL, 23), (BASE, 91)])
def test_published_sizes(config: BiRWKV7Config, millions: int) -> None:
    with torch.device("meta"):
        encoder = BiRWKV7(config, wkv7)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6) == millions
    assert encoder.grid == (64, 8)
    assert encoder.tokens == 512


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="width 100 is not a multiple of head_size 64"):
        replace(TINY, width=100)
    with pytest.raises(ValueError, match="bins are 40, expected a multiple of the patch, 16"):
        replace(TINY, spectrogram=Spectrogram(bins=40))
    with pytest.raises(ValueError, match="a patch has 12 frames, expected a multiple of the stem's 8"):
        replace(TINY, stem=(8, 8, 8), patch=(12, 16))
