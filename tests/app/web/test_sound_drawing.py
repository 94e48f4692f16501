"""The spectrogram that the page shows."""

import numpy as np
import pytest
import torch

from app.web.spectrogram import COLUMNS, QUIETEST, columns, draw, height
from encoders.spectrogram import Spectrogram
from mm_rwkv7.sounds import Sound
from tests.ears import RATE, noise

SPECTROGRAM = Spectrogram()


def _sound(waveform: torch.Tensor) -> Sound:
    return Sound.read((waveform.numpy(), RATE), RATE)


def _tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * RATE)) / RATE)


def test_a_short_sound_is_drawn_frame_by_frame() -> None:
    sound = _sound(noise(1.0))
    expected = torch.cat(list(SPECTROGRAM.features(iter([noise(1.0)]))))
    assert torch.equal(columns(sound, SPECTROGRAM), expected)


def test_columns_of_a_long_sound_are_means() -> None:
    sound = _sound(noise(20.5))
    frames = torch.cat(list(SPECTROGRAM.features(iter([noise(20.5)]))))
    drawn = columns(sound, SPECTROGRAM)
    assert len(drawn) == COLUMNS < len(frames)
    edges = [-(-column * len(frames) // COLUMNS) for column in range(COLUMNS + 1)]
    for column in (0, 1, 450, COLUMNS - 1):
        assert torch.allclose(drawn[column], frames[edges[column] : edges[column + 1]].mean(0), atol=1e-4), column


@pytest.mark.parametrize("hertz", [250, 1000, 4000])
def test_a_tone_lies_at_its_mark(hertz: float) -> None:
    levels = columns(_sound(_tone(hertz)), SPECTROGRAM).mean(0)
    assert int(levels.argmax()) + 0.5 == pytest.approx(height(hertz, SPECTROGRAM), abs=1.5)


@pytest.mark.parametrize("samples", [RATE, 150 * RATE])
def test_a_silent_sound_is_dark_and_a_loud_one_bright(samples: int) -> None:
    silent, loud = (np.asarray(draw(_sound(waveform))) for waveform in (torch.zeros(samples), noise(150)[:samples]))
    assert columns(_sound(torch.zeros(samples)), SPECTROGRAM).max() == pytest.approx(QUIETEST, abs=1e-4)
    for picture in (silent, loud):
        assert picture.shape == silent.shape
        assert picture[0, 0, 3] == 0  # transparent at its edge
    middle = silent.shape[0] // 3, silent.shape[1] // 2
    assert silent[middle].tolist() == [0, 0, 3, 255]
    assert int(loud[middle][:3].sum()) > 200


def test_a_single_sample_is_drawn() -> None:
    assert draw(_sound(torch.ones(1))).mode == "RGBA"
