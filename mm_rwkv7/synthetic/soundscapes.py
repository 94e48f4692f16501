"""Generated sounds: a few seconds made from a seed, with truthful captions, questions and answers.

>>> soundscape = sample(seed=7)
>>> soundscape.waveform.shape, soundscape.rate
((80000,), 16000)
"""

from dataclasses import dataclass

import numpy as np

from mm_rwkv7.synthetic import hearing, synthesis
from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.events import KINDS, Event, Events, lay_out
from mm_rwkv7.synthetic.synthesis import NOISES, RATE

__all__ = ["KINDS", "NOISES", "RATE", "Event", "Soundscape", "questions", "sample"]

_GLIDE = 4  # a sweep passes two octaves
_BACKGROUND = 0.06


@dataclass(frozen=True)
class Soundscape:
    """A sound and what is true of it: `waveform` (n,) int16 at `rate` samples a second; `qa` holds (question, answer,
    kind) triples; `events` what is heard, in order; `noise` the background's colour or None."""

    waveform: np.ndarray
    caption: str
    qa: tuple[tuple[str, str, str], ...]
    events: tuple[Event, ...]
    noise: str | None
    rate: int = RATE


def sample(seed: int, seconds: float = 5.0) -> Soundscape:
    """The soundscape of a seed.

    A seed gives the same bytes on every machine. By custom even seeds are for training and odd ones for evaluation.
    Raises ValueError for a negative seed or a length outside 5 ... 60 seconds.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    if not 5 <= seconds <= 60:
        raise ValueError(f"seconds is {seconds}, expected 5 to 60")
    dice = Dice(seed)
    scape = lay_out(dice, seconds)
    return Soundscape(
        waveform=_play(scape, seed, round(seconds * RATE)),
        caption=hearing.caption(scape),
        qa=hearing.ask(scape, dice),
        events=scape.events,
        noise=scape.noise,
    )


def questions(seed: int, seconds: float = 5.0) -> tuple[tuple[str, str, str], ...]:
    """`sample(seed, seconds).qa`, at a fraction of the time it takes to make the sound."""
    dice = Dice(seed)
    return hearing.ask(lay_out(dice, seconds), dice)


def _play(scape: Events, seed: int, n: int) -> np.ndarray:
    mix = np.zeros(n, np.int64)
    for number, event in enumerate(scape.events):
        start, end = (round(second * RATE) for second in (event.start, event.start + event.duration))
        voice = _voice(event, end - start, 1000 * seed + 100 * number)
        mix[start:end] += synthesis.gain(voice, event.level, event.level)
    if scape.noise is not None:
        first, last = (_BACKGROUND, _BACKGROUND) if scape.events else scape.levels
        mix += synthesis.gain(synthesis.noise(n, scape.noise, 1000 * seed + 999), first, last)
    return synthesis.finish(mix)


def _voice(event: Event, n: int, seed: int) -> np.ndarray:
    hertz = event.hertz
    match event.kind:
        case "buzz":
            return synthesis.buzz(n, hertz)
        case "bell":
            return synthesis.bell(n, hertz)
        case "rising sweep":
            return synthesis.sweep(n, hertz, hertz * _GLIDE)
        case "falling sweep":
            return synthesis.sweep(n, hertz * _GLIDE, hertz)
        case "hiss":
            return synthesis.hiss(n, seed)
        case "knock":
            return synthesis.knock(n, seed)
        case _:
            return synthesis.tone(n, hertz)
