import dataclasses
import math
import random

import pytest
import torch
from torch import Tensor

from training.singles.augment import SILENCE, Augmentation, changed, masked, mixed

ALL = Augmentation(
    roll=True,
    lengths=(40, 60),
    lead=10,
    stretch=1.25,
    shift=6,
    gain=2,
    tilt=1,
    hiss=0.5,
    time_masks=(2, 10),
    bin_masks=(2, 10),
    mix=0.5,
)


def picture(seed: int, frames: int = 100, bins: int = 128) -> Tensor:
    return torch.randn(frames, bins, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3) * 3 - 6


def test_the_defaults_change_nothing(seed: int) -> None:
    one, rng = picture(seed), random.Random(seed)
    assert torch.equal(changed(one, Augmentation(), rng), one)
    assert torch.equal(masked(one, Augmentation(), rng), one)


def test_changes_are_the_generators(seed: int) -> None:
    one = picture(seed)
    made = [changed(one, ALL, random.Random(seed + extra)) for extra in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert made[0].shape != made[2].shape or not torch.equal(made[0], made[2])
    assert torch.equal(one, picture(seed)), seed


@pytest.mark.parametrize("frames", [1, 2, 30, 100])
def test_what_comes_out_is_a_spectrogram(seed: int, frames: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        out = masked(changed(picture(seed, frames), ALL, rng), ALL, rng)
        assert out.shape[1] == 128
        assert 1 <= len(out) <= 70, seed
        assert out.isfinite().all(), seed
        assert out.min() >= SILENCE - 1e-4


def test_a_cut_keeps_the_loudest_frame(seed: int) -> None:
    rng = random.Random(seed)
    way = Augmentation(lengths=(20,))
    for _ in range(50):
        one = picture(seed)
        one[rng.randrange(100)] = 9.0
        out = changed(one, way, rng)
        assert out.shape == (20, 128)
        assert (out == 9.0).all(1).sum() == 1, seed


def test_a_roll_loses_no_frame(seed: int) -> None:
    one = picture(seed)
    out = changed(one, Augmentation(roll=True), random.Random(seed))
    assert sorted(out.sum(1).tolist()) == sorted(one.sum(1).tolist())


def test_a_shift_moves_a_line_between_the_bins(seed: int) -> None:
    one = torch.full((5, 128), SILENCE)
    one[:, 64] = 5.0
    rng = random.Random(seed)
    places = {int(changed(one, Augmentation(shift=6), rng)[0].argmax()) for _ in range(100)}
    assert min(places) < 62, seed
    assert max(places) > 66, seed
    assert min(places) >= 64 - 6 - 4, seed
    assert max(places) <= 64 + 6 + 4, seed


def test_a_gain_is_the_same_everywhere(seed: int) -> None:
    one = picture(seed).clamp(min=-8)
    added = changed(one, Augmentation(gain=2), random.Random(seed)) - one
    assert added.max() - added.min() < 1e-4, seed
    assert 0 < added.abs().max() <= 2, seed


def test_noise_only_adds_power(seed: int) -> None:
    one = picture(seed)
    assert (changed(one, Augmentation(hiss=1), random.Random(seed)) >= one - 1e-5).all(), seed


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_mixed_sounds_share_the_power(seed: int, share: float) -> None:
    one, other = picture(seed), picture(seed + 1, frames=80) + 3
    out = mixed(one, other, share)
    assert out.shape == (80, 128)
    power = float(one[:80].exp().sum())
    assert float(out.exp().sum()) == pytest.approx(power, rel=1e-3), seed
    if share in (0.0, 1.0):
        alone = other + math.log(power) - other.logsumexp((0, 1)) if share else one[:80]
        assert torch.allclose(out.exp(), alone.exp(), rtol=1e-2, atol=1e-4 * float(out.exp().max())), seed


def test_masks_are_stripes(seed: int) -> None:
    one = picture(seed)
    way = dataclasses.replace(Augmentation(), time_masks=(1, 10), bin_masks=(1, 8))
    rng = random.Random(seed)
    widths = set()
    for _ in range(100):
        hidden = masked(one, way, rng) != one
        rows, columns = hidden.all(1), hidden.all(0)
        assert torch.equal(hidden, rows[:, None] | columns), seed
        widths.add((int(rows.sum()), int(columns.sum())))
    assert max(rows for rows, _ in widths) == 10, seed
    assert max(columns for _, columns in widths) == 8, seed
