"""A sound drawn as filter banks see it: time to the right, pitch upwards, the loud bright.

Letters: F frames, M mel bins, C columns of the drawing.
"""

import math

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from encoders.spectrogram import Spectrogram
from mm_rwkv7.sounds import Sound

SIZE, DPI = (4.2, 1.7), 220  # inches
COLUMNS = 900  # more would not be seen
SPAN = 13.8  # from dark to bright: 60 dB in natural logarithms of the power
QUIETEST = math.log(2**-23)  # what a filter bank gives for silence: the least step of fp32 from 1
LOWEST_HERTZ = 20  # of a filter bank
INK = "#7c8798"  # of the axes: to be read on white and on black


def draw(sound: Sound) -> Image.Image:
    """RGBA, transparent around the spectrogram. A sound of any length takes the same memory."""
    spectrogram = Spectrogram(rate=sound.rate)
    levels = columns(sound, spectrogram)
    seconds = sound.samples / sound.rate
    unit, name = (60, "minutes") if seconds >= 120 else (1, "seconds")
    figure = Figure(SIZE, DPI, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    brightest = max(float(levels.max()), QUIETEST + SPAN)
    axes.imshow(
        levels.T.numpy(),
        colormaps["magma"],
        aspect="auto",
        interpolation="nearest",
        vmin=brightest - SPAN,
        vmax=brightest,
        origin="lower",
        extent=(0, seconds / unit, 0, spectrogram.bins),
    )
    hertz = [tick for tick in (250, 1000, 4000) if tick < spectrogram.rate / 2]
    axes.set_yticks([height(tick, spectrogram) for tick in hertz], [f"{tick:,} Hz" for tick in hertz])
    axes.set_xlabel(name, color=INK)
    axes.tick_params(colors=INK)
    axes.spines[:].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))


def columns(sound: Sound, spectrogram: Spectrogram) -> Tensor:
    """(C, M): the means of neighbouring frames, so that there are no more than COLUMNS."""
    total = spectrogram.count(sound.samples)
    count = min(total, COLUMNS)
    sums, frames, begun = torch.zeros(count, spectrogram.bins), torch.zeros(count), 0
    for block in spectrogram.features(sound.blocks()):  # (F, M)
        where = torch.arange(begun, begun + len(block)) * count // total
        sums.index_add_(0, where, block)
        frames.index_add_(0, where, torch.ones(len(block)))
        begun += len(block)
    return sums / frames[:, None]


def height(hertz: float, spectrogram: Spectrogram) -> float:
    """Where a pitch lies among the bins, whose middles are half way between their edges."""
    low, high = _mel(LOWEST_HERTZ), _mel(spectrogram.rate / 2)
    return (_mel(hertz) - low) / (high - low) * (spectrogram.bins + 1) - 0.5


def _mel(hertz: float) -> float:
    return 1127 * math.log1p(hertz / 700)
