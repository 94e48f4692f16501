"""Any sound file, bytes or waveform as one channel at one rate, a block at a time, or one line why not.

Letters: n samples.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import soundfile

Waveform = tuple[Any, int]  # samples (n) or (n, channels), and how many there are in a second
SoundSource = str | os.PathLike[str] | bytes | Waveform

BLOCK = 1 << 16  # samples of each channel read at once
KEPT_SECONDS = 60  # of a sound that is not read again when it is encoded
RATES = (1_000, 768_000)
MAX_CHANNELS = 64
LARGEST_RATIO = 1 << 21  # product of the two terms of a resampling ratio: its filter has that many taps and more


@dataclass(frozen=True)
class Sound:
    """A sound whose length is known and which was read through without an error. `blocks` gives its samples as often as
    one asks; a long sound is read again for them, so that it takes no memory."""

    source: SoundSource
    rate: int
    samples: int
    kept: tuple[Tensor, ...] | None  # the blocks of a short sound

    @classmethod
    def read(cls, source: SoundSource, rate: int) -> "Sound":
        """See `read_sound` for what is read, and for its errors."""
        samples, kept = 0, []
        for block in read_sound(source, rate):
            samples += len(block)
            if samples <= KEPT_SECONDS * rate:
                kept.append(block)
            else:
                kept.clear()
        short = samples <= KEPT_SECONDS * rate
        return cls(source, rate, samples, tuple(kept) if short else None)

    def blocks(self) -> Iterator[Tensor]:
        """Blocks (n,) fp32 of `samples` samples in all. ValueError when a file has changed since it was counted."""
        found = 0
        for block in self.kept if self.kept is not None else read_sound(self.source, self.rate):
            found += len(block)
            yield block
        if found != self.samples:
            raise ValueError(f"{_name(self.source)} has changed: {found} samples, expected {self.samples}")


def _name(source: SoundSource) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "the sound"


def load_sound(source: SoundSource, rate: int = 16_000) -> Tensor:
    """The whole sound as (n,) fp32; see `read_sound`."""
    return torch.cat(list(read_sound(source, rate)))


def read_sound(source: SoundSource, rate: int = 16_000) -> Iterator[Tensor]:
    """Blocks (n,) fp32 of a WAV, FLAC, OGG or MP3 file or of a waveform: channels averaged, resampled to `rate`.

    Memory does not grow with the length, and the samples do not depend on where the blocks are cut. Integer samples
    are scaled to -1 ... 1. A ValueError names the source when it is missing, empty, no sound, broken, or holds a
    sample that is no number. Of a file that was cut short, what is there is read wherever its format allows it.
    """
    return resample(*_mono(source), rate)


def check_sound(source: SoundSource) -> None:
    """Read a sound through at its own rate and keep nothing; see `read_sound` for the errors."""
    for _ in _mono(source)[0]:
        pass


def _mono(source: SoundSource) -> tuple[Iterator[Tensor], int]:
    """Blocks of one channel, and their rate."""
    if isinstance(source, tuple):
        return _waveform(source)
    if isinstance(source, bytes):
        return _file(BytesIO(source), "the sound")
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"a sound is a path, bytes or (waveform, rate), got {type(source).__name__}")
    name = os.fspath(source)
    try:
        return _file(open(source, "rb"), name)
    except FileNotFoundError as error:
        raise ValueError(f"{name}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{name} is a folder, expected a sound file") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error


def _waveform(source: Waveform) -> tuple[Iterator[Tensor], int]:
    if len(source) != 2 or not isinstance(source[1], int | np.integer):
        raise ValueError("a waveform is given as (samples, samples per second)")
    samples, rate = np.asarray(source[0]), int(source[1])
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise ValueError(f"the waveform is {samples.dtype} {samples.shape}, expected numbers (n,) or (n, channels)")
    if samples.ndim == 1:
        samples = samples[:, None]
    _check("the waveform", rate, samples.shape[1])
    if not len(samples):
        raise ValueError("the waveform is empty")
    starts = range(0, len(samples), BLOCK)
    return _averaged("the waveform", (_scaled(samples[start : start + BLOCK]) for start in starts), rate), rate


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Integers to -1 ... 1 by the range of their type; unsigned ones have their middle in the middle."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return ((samples.astype(np.float64) - (half if samples.dtype.kind == "u" else 0)) / half).astype(np.float32)


def _file(file: BinaryIO, name: str) -> tuple[Iterator[Tensor], int]:
    try:
        if not file.read(1):
            raise ValueError(f"{name} is empty")
        file.seek(0)
        opened = _open(file, name)
        _check(name, opened.samplerate, opened.channels)
    except BaseException:
        file.close()
        raise
    return _averaged(name, _read(opened, file, name), opened.samplerate), opened.samplerate


@contextmanager
def _refusing_broken(name: str) -> Iterator[None]:
    import soundfile

    try:
        yield
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is broken or cut short: {error}") from error


def _open(file: BinaryIO, name: str) -> "soundfile.SoundFile":
    import soundfile

    try:
        with _refusing_broken(name):
            return soundfile.SoundFile(file)
    except ValueError as error:
        known = file.seek(0) == 0 and file.read(4) in (b"RIFF", b"fLaC", b"OggS")
        if known:
            raise
        raise ValueError(f"{name} is not a sound, or not of a known format (WAV, FLAC, OGG, MP3)") from error


def _read(opened: "soundfile.SoundFile", file: BinaryIO, name: str) -> Iterator[np.ndarray]:
    with file, opened:
        found = 0
        while True:
            with _refusing_broken(name):
                block = opened.read(BLOCK, dtype="float32", always_2d=True)
            found += len(block)
            if not len(block):
                break
            yield block
    if not found:
        raise ValueError(f"{name} has no samples")


def _check(name: str, rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name} has {rate} samples a second, expected {RATES[0]:,} to {RATES[1]:,}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{name} has {channels} channels, expected 1 to {MAX_CHANNELS}")


def _averaged(name: str, blocks: Iterator[np.ndarray], rate: int) -> Iterator[Tensor]:
    """(n, channels) -> (n,), refusing what is no number."""
    begun = 0
    for block in blocks:
        wrong = ~np.isfinite(block).all(axis=1)
        if wrong.any():
            second = (begun + int(wrong.argmax())) / rate
            raise ValueError(f"{name} has a sample that is no number at {second:.3f} s")
        begun += len(block)
        yield torch.from_numpy(block.mean(axis=1, dtype=np.float32))


def resample(blocks: Iterator[Tensor], source_rate: int, rate: int) -> Iterator[Tensor]:
    """Blocks (n,) at one rate -> blocks at another, by torchaudio's windowed sinc: the samples that it gives for the
    whole in one piece.

    A rate whose ratio has large terms (44,101 to 16,000) is taken for the nearest multiple of 50.
    """
    source, target = _ratio(source_rate, rate)
    if source == target:
        yield from blocks
        return
    from torchaudio.functional import resample as resample_piece

    reach = math.ceil(6 * source / (0.99 * min(source, target)))  # the filter sees so many samples to either side
    context = -(-reach // source)  # in steps: `source` samples in, `target` samples out
    held = torch.zeros(context * source)  # begins with `context` steps that are done
    seen = 0
    for block in blocks:
        seen += len(block)
        held = torch.cat([held, block])
        steps = len(held) // source - 2 * context
        if steps > 0:
            out = resample_piece(held[: (steps + 2 * context) * source], source, target)
            yield out[context * target : (context + steps) * target].clone()
            held = held[steps * source :]
    left = len(held) - context * source
    if left > 0:
        out = resample_piece(torch.cat([held, torch.zeros(context * source)]), source, target)
        yield out[context * target :][: -(-left * target // source)].clone()


def resampled(samples: int, source_rate: int, rate: int) -> int:
    """How many samples `resample` gives for so many."""
    source, target = _ratio(source_rate, rate)
    return -(-samples * target // source)


def _ratio(source_rate: int, rate: int) -> tuple[int, int]:
    shared = math.gcd(source_rate, rate)
    if (source_rate // shared) * (rate // shared) > LARGEST_RATIO:
        source_rate = round(source_rate / 50) * 50
        shared = math.gcd(source_rate, rate)
    return source_rate // shared, rate // shared
