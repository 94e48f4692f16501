"""What every frontend promises: a sound gives the same windows wherever its blocks are cut, as many as it counts, and
holds no more of it than a window and a block."""

import random
from collections.abc import Iterator

import pytest
import torch

from encoders.logmel import LogMel
from encoders.sound import Frontend
from encoders.spectrogram import Spectrogram
from encoders.waveform import Waveform

FRONTENDS = [Spectrogram(frames=100), LogMel(frames=100), Waveform(frames=16_000)]


def noise(samples: int, seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def pieces(waveform: torch.Tensor, longest: int, seed: int) -> Iterator[torch.Tensor]:
    draw = random.Random(seed)
    while len(waveform):
        length = draw.randint(0, longest)
        yield waveform[:length]
        waveform = waveform[length:]


@pytest.mark.parametrize("frontend", FRONTENDS, ids=lambda frontend: type(frontend).__name__)
@pytest.mark.parametrize("samples", [1, 16_000, 100_001])
def test_pieces_do_not_matter(frontend: Frontend, samples: int, seed: int) -> None:
    waveform = noise(samples, seed)
    whole = list(frontend.windows(iter([waveform])))
    assert sum(frames for _, frames in whole) == frontend.count(samples)
    assert [frames for _, frames in whole[:-1]] == [frontend.frames] * (len(whole) - 1)
    for longest in (20_000, 50_000) if samples > 1000 else (3,):
        found = list(frontend.windows(pieces(waveform, longest, seed)))
        assert [frames for _, frames in found] == [frames for _, frames in whole]
        for (window, _), (expected, _) in zip(found, whole, strict=True):
            torch.testing.assert_close(window, expected, rtol=0, atol=1e-4, msg=f"seed {seed}")


@pytest.mark.parametrize("frontend", FRONTENDS, ids=lambda frontend: type(frontend).__name__)
def test_windows_come_while_the_sound_is_read(frontend: Frontend, seed: int) -> None:
    """Whoever wants a window waits for no more of the sound than a few blocks after its end."""
    given = 0

    def blocks() -> Iterator[torch.Tensor]:
        nonlocal given
        for block in noise(100_000, seed).split(1_000):
            given += len(block)
            yield block

    for index, (window, _) in enumerate(frontend.windows(blocks())):
        assert given <= (index + 1) * 16_000 + 3_000, f"seed {seed}"
        assert window.untyped_storage().nbytes() <= 4 * window.numel()


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="frames is 1, expected at least 2"):
        LogMel(frames=1)
    with pytest.raises(ValueError, match="rate is 10, expected at least 1000"):
        Waveform(rate=10)
