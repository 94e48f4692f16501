"""Voices and noises in whole numbers, so that a seed gives the same samples on every machine.

Letters: n samples. Samples are int64 within about -32767 ... 32767 until they are mixed.
"""

import math

import numpy as np

RATE = 16_000
NOISES = ("white", "pink", "brown")

_UNIT = 32_767
_TABLE_BITS = 12
_PHASE_BITS = 32
_GAIN_BITS = 12
_OCTAVES = 12

# Frequency in parts of the first partial, in thousandths, and weight in hundredths.
_TONE = ((1000, 100),)
_BUZZ = ((1000, 50), (3000, 25), (5000, 15), (7000, 10))
_BELL = ((1000, 50), (2760, 30), (5400, 20))


def tone(n: int, hertz: int) -> np.ndarray:
    """A pure tone."""
    return _fade(_partials(n, hertz, hertz, _TONE), RATE // 100)


def buzz(n: int, hertz: int) -> np.ndarray:
    """A tone with odd overtones."""
    return _fade(_partials(n, hertz, hertz, _BUZZ), RATE // 100)


def bell(n: int, hertz: int) -> np.ndarray:
    """Inharmonic partials, struck once and dying away."""
    return _die_away(_partials(n, hertz, hertz, _BELL), n // 8)


def sweep(n: int, first: int, last: int) -> np.ndarray:
    """A pure tone that glides from one frequency to another."""
    return _fade(_partials(n, first, last, _TONE), RATE // 100)


def hiss(n: int, seed: int) -> np.ndarray:
    """A burst of white noise."""
    return _fade(noise(n, "white", seed), RATE // 100)


def knock(n: int, seed: int) -> np.ndarray:
    """Two dull strokes: low noise that dies away at once, loud enough to be heard beneath another."""
    half = n // 2
    stroke = _die_away(np.clip(3 * noise(half, "brown", seed), -_UNIT, _UNIT), RATE // 100)
    return np.concatenate([stroke, stroke, np.zeros(n - 2 * half, np.int64)])


def noise(n: int, colour: str, seed: int) -> np.ndarray:
    """White noise has equal power at all frequencies, pink loses 3 dB an octave and brown 6: sums of white noises that
    are held for 1, 2, 4, ... samples."""
    if colour == "white":
        return _white(n, seed)
    weights = [1] * _OCTAVES if colour == "pink" else [round(2 ** (octave / 2)) for octave in range(_OCTAVES)]
    total = np.zeros(n, np.int64)
    for octave, weight in enumerate(weights):
        held = _white(-(-n >> octave) + 1, seed + octave)
        total += weight * np.repeat(held, 1 << octave)[:n]
    return total // (2 * math.isqrt(sum(weight * weight for weight in weights)))


def gain(samples: np.ndarray, first: float, last: float) -> np.ndarray:
    """The samples at a loudness that goes evenly from one to another, 0 ... 1."""
    begin, end = (round(level * (1 << _GAIN_BITS)) for level in (first, last))
    steps = begin + (end - begin) * np.arange(len(samples), dtype=np.int64) // max(1, len(samples))
    return samples * steps >> _GAIN_BITS


def finish(samples: np.ndarray) -> np.ndarray:
    """A mix (n,) as int16; what is too loud is cut off."""
    return np.clip(samples, -_UNIT, _UNIT).astype(np.int16)


def _partials(n: int, first: int, last: int, partials: tuple[tuple[int, int], ...]) -> np.ndarray:
    table = np.array([round(_UNIT * math.sin(2 * math.pi * i / (1 << _TABLE_BITS))) for i in range(1 << _TABLE_BITS)])
    time = np.arange(n, dtype=np.int64)
    total = np.zeros(n, np.int64)
    for thousandths, weight in partials:
        begin, end = ((hertz * thousandths << _PHASE_BITS) // (1000 * RATE) for hertz in (first, last))
        phase = np.cumsum(begin + (end - begin) * time // n)
        total += weight * table[phase >> (_PHASE_BITS - _TABLE_BITS) & ((1 << _TABLE_BITS) - 1)]
    return total // 100


def _white(n: int, seed: int) -> np.ndarray:
    raw = np.random.PCG64(seed).random_raw(n)
    return (raw >> np.uint64(48)).astype(np.int64) - 32_768


def _fade(samples: np.ndarray, edge: int) -> np.ndarray:
    """Begins and ends within `edge` samples, without a click."""
    edge = min(edge, len(samples) // 2)
    steps = np.minimum(np.arange(len(samples)), edge)
    return samples * np.minimum(steps, steps[::-1]) // max(1, edge)


def _die_away(samples: np.ndarray, half_life: int) -> np.ndarray:
    """Half as loud after every `half_life` samples."""
    blocks = -(-len(samples) * 16 // half_life) + 1
    levels = np.array([round((1 << _GAIN_BITS) * 2 ** (-block / 16)) for block in range(blocks)])
    at = np.arange(len(samples)) * 16
    block, rest = at // half_life, at % half_life
    level = levels[block] + (levels[np.minimum(block + 1, blocks - 1)] - levels[block]) * rest // half_life
    return _fade(samples * level >> _GAIN_BITS, RATE // 500)
