"""Spectrograms against transformers' AST feature extractor, and against themselves read in other pieces."""

import random

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor

from encoders.spectrogram import Spectrogram


def noise(samples: int, seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def in_pieces(waveform: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return [piece for piece in waveform.split([*lengths, len(waveform) - sum(lengths)]) if len(piece)]


@pytest.mark.parametrize("samples", [400, 401, 12_345, 160_000, 164_080])
def test_a_window_is_what_ast_reads(samples: int, seed: int) -> None:
    waveform = noise(samples, seed)
    spectrogram = Spectrogram()
    expected = ASTFeatureExtractor()(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"]
    ((window, frames),) = spectrogram.windows(iter([waveform]))
    torch.testing.assert_close(spectrogram.normalise(window[None]), expected, rtol=0, atol=1e-5, msg=f"seed {seed}")
    assert frames == min(1024, spectrogram.count(samples))


def test_pieces_do_not_matter(seed: int) -> None:
    waveform = noise(500_000, seed)
    spectrogram = Spectrogram(frames=1000)
    whole = list(spectrogram.windows(iter([waveform])))
    lengths = random.Random(seed).sample(range(1, 9000), 40)
    pieces = list(spectrogram.windows(iter(in_pieces(waveform, lengths))))
    assert [frames for _, frames in whole] == [frames for _, frames in pieces]
    assert sum(frames for _, frames in whole) == spectrogram.count(len(waveform))
    for (expected, _), (found, _) in zip(whole, pieces, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, msg=f"seed {seed}")


@pytest.mark.parametrize("samples", [1, 399])
def test_a_sound_shorter_than_a_frame_gives_one(samples: int, seed: int) -> None:
    waveform = noise(samples, seed)
    filled = torch.nn.functional.pad(waveform, (0, 400 - samples))
    ((short, one),) = Spectrogram().windows(iter([waveform]))
    ((long, _),) = Spectrogram().windows(iter([filled]))
    assert one == 1
    assert torch.equal(short, long)
    assert short[0].abs().sum() > 0
    assert not short[1:].any()


def test_silence_is_finite() -> None:
    ((window, frames),) = Spectrogram().windows(iter([torch.zeros(16_000)]))
    assert frames == 98
    assert window.isfinite().all()
    assert np.allclose(window[:98], np.log(np.finfo(np.float32).eps))


def test_a_full_window_is_not_followed_by_an_empty_one(seed: int) -> None:
    spectrogram = Spectrogram(frames=10)
    waveform = noise(400 + 19 * 160, seed)
    assert [frames for _, frames in spectrogram.windows(iter([waveform]))] == [10, 10]


def test_bins_lie_between_two_frequencies(seed: int) -> None:
    """A tone below the lowest bin, or above the highest, is heard in none of them as it is between the two."""
    spectrogram = Spectrogram(rate=32_000, frames=50, lowest=1000.0, highest=4000.0)
    energy = {}
    for hertz in (300, 2000, 9000):
        tone = torch.sin(torch.arange(16_000) * (hertz * 2 * torch.pi / 32_000)) + 1e-3 * noise(16_000, seed)
        ((window, frames),) = spectrogram.windows(iter([tone]))
        energy[hertz] = float(window[:frames].exp().sum(1).mean())
    assert 100 * max(energy[300], energy[9000]) < energy[2000], f"seed {seed}: {energy}"


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="frames is 0, expected at least 1"):
        Spectrogram(frames=0)
    with pytest.raises(ValueError, match="scale is 0"):
        Spectrogram(scale=0)
    for lowest, highest in ((-1.0, None), (500.0, 400.0), (8000.0, None), (20.0, 8001.0)):
        with pytest.raises(ValueError, match="expected to lie between 0 and 8000"):
            Spectrogram(lowest=lowest, highest=highest)
