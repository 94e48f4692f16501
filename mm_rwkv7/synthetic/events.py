"""What happens in a soundscape, and when."""

from dataclasses import dataclass
from itertools import pairwise

from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.synthesis import NOISES

KINDS = ("tone", "buzz", "bell", "rising sweep", "falling sweep", "hiss", "knock")
PITCHED = ("tone", "buzz", "bell")

_LOW, _HIGH = (140, 320), (1000, 2200)  # Hz
_SWEEP = (250, 700)
_LEVEL = (0.18, 0.32)
_SHORT = 0.12  # seconds of a beep
_GAP = 0.2  # at least so many seconds lie between two sounds


@dataclass(frozen=True)
class Event:
    """One sound: its kind, when it begins and how long it lasts (s), loudness 0 ... 1, frequency (Hz, 0 for noises),
    "low" or "high" where that is a question."""

    kind: str
    start: float
    duration: float
    level: float
    hertz: int = 0
    pitch: str | None = None


@dataclass(frozen=True)
class Events:
    """A whole soundscape. `form` is "sequence" (different sounds one after another), "beeps" (one short sound several
    times), "melody" (notes that go up or down) or "noise" (nothing else). `steady` says whether the pauses between
    beeps are equal, `levels` how loud a noise alone begins and ends."""

    form: str
    events: tuple[Event, ...]
    noise: str | None = None
    steady: bool | None = None
    levels: tuple[float, float] = (0.0, 0.0)


def lay_out(dice: Dice, seconds: float) -> Events:
    form = dice.weighted(("sequence", "beeps", "melody", "noise"), (6, 2, 1, 1))
    if form == "beeps":
        return _beeps(dice, seconds)
    if form == "melody":
        return _melody(dice, seconds)
    if form == "noise":
        return _noise(dice)
    return _sequence(dice, seconds)


def _sequence(dice: Dice, seconds: float) -> Events:
    kinds = dice.shuffled(KINDS)[: dice.between(1, 4)]
    durations = [0.4 + 0.3 * dice.below(3) / 2 for _ in kinds]
    starts = _starts(dice, durations, seconds)
    events = [_event(dice, kind, start, length) for kind, start, length in zip(kinds, starts, durations, strict=True)]
    return Events("sequence", tuple(events), _background(dice))


def _background(dice: Dice) -> str | None:
    return dice.pick(NOISES) if dice.chance(0.5) else None


def _event(dice: Dice, kind: str, start: float, duration: float) -> Event:
    level = _within(dice, _LEVEL)
    if kind in PITCHED:
        pitch = dice.pick(("low", "high"))
        return Event(kind, start, duration, level, round(_within(dice, _LOW if pitch == "low" else _HIGH)), pitch)
    if kind.endswith("sweep"):
        return Event(kind, start, duration, level, round(_within(dice, _SWEEP)))
    return Event(kind, start, duration, level)


def _beeps(dice: Dice, seconds: float) -> Events:
    count = dice.between(1, 6)
    level, pitch = _within(dice, _LEVEL), dice.pick(("low", "high"))
    hertz = round(_within(dice, _LOW if pitch == "low" else _HIGH))
    steady = dice.chance(0.5) if count >= 4 else None
    if steady:
        step = _within(dice, (0.35, min(0.6, (seconds - 0.4) / count)))
        first = _within(dice, (0.1, seconds - 0.2 - step * count))
        starts = [first + step * i for i in range(count)]
    elif steady is None:
        starts = _starts(dice, [_SHORT] * count, seconds)
    else:
        starts = _uneven(dice, count, seconds)
    events = tuple(Event("beep", start, _SHORT, level, hertz, pitch) for start in starts)
    return Events("beeps", events, _background(dice), steady)


def _uneven(dice: Dice, count: int, seconds: float) -> list[float]:
    """Starts whose longest pause is at least three times the shortest."""
    pauses = [_within(dice, (0.2, 0.25)) * dice.pick((1, 1.5, 3)) for _ in range(count - 3)]
    pauses = dice.shuffled([*pauses, _within(dice, (0.2, 0.22)), _within(dice, (0.66, 0.75))])
    length = sum(pauses) + _SHORT * count
    starts = [_within(dice, (0.05, seconds - 0.1 - length))]
    for pause in pauses:
        starts.append(starts[-1] + _SHORT + pause)
    return starts


def _melody(dice: Dice, seconds: float) -> Events:
    count, up = dice.between(3, 5), dice.chance(0.5)
    hertz = [round(_within(dice, (220, 330)))]
    for _ in range(count - 1):
        hertz.append(round(hertz[-1] * _within(dice, (1.25, 1.6))))
    level = _within(dice, _LEVEL)
    first = _within(dice, (0.1, seconds - 0.2 - 0.5 * count))
    notes = [
        Event("note", first + 0.5 * i, 0.4, level, pitch) for i, pitch in enumerate(hertz if up else reversed(hertz))
    ]
    return Events("melody", tuple(notes))


def _noise(dice: Dice) -> Events:
    quiet, loud = 0.05, _within(dice, _LEVEL)
    levels = dice.pick(((quiet, loud), (loud, quiet), (loud, loud)))
    return Events("noise", (), dice.pick(NOISES), levels=levels)


def _starts(dice: Dice, durations: list[float], seconds: float) -> list[float]:
    """Random starts, in order, with pauses of at least `_GAP`."""
    spare = seconds - sum(durations) - _GAP * (len(durations) + 1)
    cuts = sorted(_within(dice, (0, spare)) for _ in durations)
    pauses = [cuts[0], *(later - earlier for earlier, later in pairwise(cuts))]
    starts = []
    now = 0.0
    for pause, duration in zip(pauses, durations, strict=True):
        now += _GAP + pause
        starts.append(now)
        now += duration
    return starts


def _within(dice: Dice, bounds: tuple[float, float]) -> float:
    """A number between two, in thousandths of the way."""
    low, high = bounds
    return low + (high - low) * dice.between(0, 1000) / 1000
