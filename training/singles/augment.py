"""Spectrograms changed at random, so that few recordings teach as much as many.

Spectrograms hold natural logarithms of power, as `encoders.spectrogram` makes them: a gain is a sum, two sounds at once
are a `logaddexp`, and a change of speed or pitch stretches the picture.

Letters: F frames, M mel bins.
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SILENCE = -23 * math.log(2)  # what the filter bank gives for zeros


@dataclass(frozen=True)
class Augmentation:
    """How far a spectrogram may be changed; the defaults change nothing.

    roll: let it begin anywhere and go on with its beginning.
    lengths: frames of a cut, chosen from these; the loudest frame stays in.
    lead: up to so many frames of the sound's own background before it.
    stretch: factors of the length, from 1 / stretch to stretch.
    shift: bins up or down, and as much in width.
    gain, tilt: nepers of power, of the whole and of a smooth curve over the bins.
    hiss: how often noise is added, 0 ... 1.
    time_masks, bin_masks: SpecAugment's, (how many, how wide at most).
    mix: how often another sound of the same source is mixed in, 0 ... 1.
    beta: its share of the power is drawn from Beta(beta, beta); without it, every share up to a half is as likely.
    """

    roll: bool = False
    lengths: tuple[int, ...] = ()
    lead: int = 0
    stretch: float = 1.0
    shift: float = 0.0
    gain: float = 0.0
    tilt: float = 0.0
    hiss: float = 0.0
    time_masks: tuple[int, int] = (0, 0)
    bin_masks: tuple[int, int] = (0, 0)
    mix: float = 0.0
    beta: float | None = None

    def share(self, rng: random.Random) -> float:
        """Of the sound that is mixed in, up to a half: the other one is the sound that was drawn."""
        if self.beta is None:
            return rng.uniform(0, 0.5)
        share = rng.betavariate(self.beta, self.beta)
        return min(share, 1 - share)


AUDIOSET = Augmentation(time_masks=(1, 192), bin_masks=(1, 48), mix=0.5, beta=10.0)  # AST's

# By the name of the source.
AUGMENTATIONS: dict[str, Augmentation] = {
    "soundscapes": Augmentation(gain=0.7),
    "esc10": Augmentation(
        roll=True,
        lengths=(256, 384, 512),
        stretch=1.25,
        shift=6.0,
        gain=2.5,
        tilt=0.8,
        hiss=0.25,
        time_masks=(2, 40),
        bin_masks=(2, 20),
        mix=0.6,
    ),
    "spoken_digits": Augmentation(
        lead=60, stretch=1.25, shift=5.0, gain=2.5, tilt=0.8, hiss=0.3, time_masks=(1, 6), bin_masks=(2, 14)
    ),
    "audioset": AUDIOSET,
    "audioset_balanced": AUDIOSET,
}


def changed(picture: Tensor, way: Augmentation, rng: random.Random) -> Tensor:
    """(F, M) -> (F', M): all but the mixing and the masks, which come after it."""
    if way.roll:
        picture = picture.roll(rng.randrange(len(picture)), 0)
    if way.stretch > 1:
        picture = _stretched(picture, way.stretch ** rng.uniform(-1, 1))
    if way.lengths:
        picture = _cut(picture, rng.choice(way.lengths), rng)
    if way.shift:
        picture = _shifted(picture, rng.uniform(-1, 1) * way.shift, 1 + rng.uniform(-1, 1) * way.shift / 128)
    if way.lead and rng.random() < 0.5:
        background = picture.amin(0, keepdim=True).expand(rng.randint(0, way.lead), -1)
        picture = torch.cat([background, picture])
    if way.tilt:
        knots = torch.tensor([[[rng.gauss(0, way.tilt) for _ in range(6)]]])
        picture = picture + F.interpolate(knots, picture.shape[1], mode="linear", align_corners=True)[0]
    picture = picture + rng.uniform(-way.gain, way.gain)
    if rng.random() < way.hiss:
        picture = torch.logaddexp(picture, _hiss(picture, rng))
    return picture.clamp(min=SILENCE)


def mixed(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Two sounds (F, M) at once, as long as the shorter, made equally loud before they get 1 - share and share of the
    power."""
    frames = min(len(one), len(other))
    one, other = one[:frames], other[:frames]
    other = other + one.logsumexp((0, 1)) - other.logsumexp((0, 1))
    return torch.logaddexp(one + math.log(max(1 - share, 1e-6)), other + math.log(max(share, 1e-6)))


def masked(picture: Tensor, way: Augmentation, rng: random.Random) -> Tensor:
    """SpecAugment (arXiv 1904.08779): stripes of frames and of bins at the picture's mean."""
    filled = picture.clone()
    for axis, (count, widest) in enumerate((way.time_masks, way.bin_masks)):
        for _ in range(count):
            width = min(rng.randint(0, widest), picture.shape[axis] // 3)
            filled.narrow(axis, rng.randint(0, picture.shape[axis] - width), width).fill_(picture.mean())
    return filled


def _stretched(picture: Tensor, factor: float) -> Tensor:
    frames = max(1, round(len(picture) * factor))
    return F.interpolate(picture.mT[None], frames, mode="linear", align_corners=True)[0].mT


def _cut(picture: Tensor, frames: int, rng: random.Random) -> Tensor:
    if frames >= len(picture):
        return picture
    loudest = int(picture.logsumexp(1).argmax())
    start = rng.randint(max(0, loudest - frames + 1), min(loudest, len(picture) - frames))
    return picture[start : start + frames]


def _shifted(picture: Tensor, shift: float, width: float) -> Tensor:
    """What was at bin m * width + shift comes to bin m."""
    bins = picture.shape[1]
    place = (torch.arange(bins) * width + shift).clamp(0, bins - 1)
    below = place.floor().long().clamp(max=bins - 2)
    return torch.lerp(picture[:, below], picture[:, below + 1], place - below)


def _hiss(picture: Tensor, rng: random.Random) -> Tensor:
    """Noise that is 1 to 7 nepers below the sound's mean power, in every bin alike."""
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    power = torch.empty_like(picture).exponential_(generator=generator)
    level = float(picture.logsumexp((0, 1))) - math.log(picture.numel()) + rng.uniform(-7, -1)
    return power.clamp(min=1e-6).log() + level
