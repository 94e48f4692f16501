"""Truthful words about a soundscape: its caption, and questions with answers.

Answers are balanced as those about scenes are: a coin picks yes or no, first or second, before the words are chosen.
"""

from collections.abc import Callable
from itertools import pairwise

from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.events import KINDS, Event, Events
from mm_rwkv7.synthetic.synthesis import NOISES

Answered = tuple[str, str] | None  # question and answer, or None where the sound allows none

PHRASINGS: dict[str, tuple[str, ...]] = {
    "count": ("How many {what} are there?", "How many {what} can you hear?", "Count the {what}."),
    "exists": ("Is there {a}?", "Can you hear {a}?", "Does {a} sound?"),
    "order": ("Does the {one} come before the {other}?", "Is the {one} heard before the {other}?"),
    "first": ("Which sound comes {end}?", "What is heard {end}?", "What is the {end} sound?"),
    "pitch": ("Is the {what} high or low?", "Is the {what} low or high?", "How high is the {what}?"),
    "sweep": ("Does the sweep go up or down?", "Does the pitch of the sweep rise or fall: up or down?"),
    "melody": ("Do the notes go up or down?", "Does the melody go up or down?"),
    "rhythm": ("Is the rhythm steady or uneven?", "Are the beeps steady or uneven?"),
    "noise": ("What colour is the noise?", "Which colour of noise is it?", "Is the noise white, pink or brown?"),
    "background": ("Is there noise in the background?", "Can you hear noise in the background?"),
    "loudness": ("Does it get louder or quieter?", "How does the loudness change?"),
}
ASKERS: dict[str, tuple[str, ...]] = {
    "sequence": ("count", "exists", "exists", "order", "order", "first", "pitch", "sweep", "noise", "background"),
    "beeps": ("count", "count", "pitch", "rhythm", "noise", "background"),
    "melody": ("melody", "count"),
    "noise": ("noise", "loudness"),
}


def ask(scape: Events, dice: Dice, most: int = 6) -> tuple[tuple[str, str, str], ...]:
    """Up to `most` different (question, answer, kind) triples."""
    asked: dict[str, tuple[str, str]] = {}
    for kind in dice.shuffled(ASKERS[scape.form]):
        answered = _QUESTIONS[kind](scape, dice)
        if answered is not None:
            asked.setdefault(answered[0], (answered[1], kind))
        if len(asked) == most:
            break
    return tuple((question, answer, kind) for question, (answer, kind) in asked.items())


def caption(scape: Events) -> str:
    """What is heard, in order."""
    background = f", with {scape.noise} noise in the background" if scape.noise else ""
    count = len(scape.events)
    match scape.form:
        case "noise":
            return f"{scape.noise} noise{_change(scape)}"
        case "melody":
            return f"{count} notes going {_direction(scape)}"
        case "beeps":
            pitch = scape.events[0].pitch
            steady = "" if scape.steady is None else " in a steady rhythm" if scape.steady else " in an uneven rhythm"
            return f"{count} {pitch} beep{'s' if count > 1 else ''}{steady}{background}"
        case _:
            return f"{', then '.join(with_article(_described(event)) for event in scape.events)}{background}"


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _described(event: Event) -> str:
    return f"{event.pitch} {event.kind}" if event.pitch else event.kind


def _change(scape: Events) -> str:
    first, last = scape.levels
    return "" if first == last else " getting louder" if last > first else " getting quieter"


def _direction(scape: Events) -> str:
    return "up" if scape.events[-1].hertz > scape.events[0].hertz else "down"


def _say(dice: Dice, form: str, **values: str) -> str:
    return dice.pick(PHRASINGS[form]).format(**values)


def _count(scape: Events, dice: Dice) -> Answered:
    what = {"beeps": "beeps", "melody": "notes"}.get(scape.form, "sounds")
    return _say(dice, "count", what=what), str(len(scape.events))


def _exists(scape: Events, dice: Dice) -> Answered:
    present = [event.kind for event in scape.events]
    yes = dice.chance(0.5)
    kind = dice.pick(present if yes else [kind for kind in KINDS if kind not in present])
    return _say(dice, "exists", a=with_article(kind)), "yes" if yes else "no"


def _order(scape: Events, dice: Dice) -> Answered:
    if len(scape.events) < 2:
        return None
    earlier, later = dice.pick([*pairwise(scape.events), (scape.events[0], scape.events[-1])])
    yes = dice.chance(0.5)
    one, other = (earlier, later) if yes else (later, earlier)
    return _say(dice, "order", one=one.kind, other=other.kind), "yes" if yes else "no"


def _first(scape: Events, dice: Dice) -> Answered:
    if len(scape.events) < 2:
        return None
    first = dice.chance(0.5)
    return _say(dice, "first", end="first" if first else "last"), scape.events[0 if first else -1].kind


def _pitch(scape: Events, dice: Dice) -> Answered:
    pitched = [event for event in scape.events if event.pitch]
    if not pitched:
        return None
    event = dice.pick(pitched)
    assert event.pitch is not None
    return _say(dice, "pitch", what="sound" if scape.form == "beeps" else event.kind), event.pitch


def _sweep(scape: Events, dice: Dice) -> Answered:
    sweeps = [event.kind for event in scape.events if event.kind.endswith("sweep")]
    if len(sweeps) != 1:
        return None
    return _say(dice, "sweep"), "up" if sweeps[0] == "rising sweep" else "down"


def _melody(scape: Events, dice: Dice) -> Answered:
    return _say(dice, "melody"), _direction(scape)


def _rhythm(scape: Events, dice: Dice) -> Answered:
    if scape.steady is None:
        return None
    return _say(dice, "rhythm"), "steady" if scape.steady else "uneven"


def _noise(scape: Events, dice: Dice) -> Answered:
    if scape.noise is None:
        return None
    assert scape.noise in NOISES
    return _say(dice, "noise"), scape.noise


def _background(scape: Events, dice: Dice) -> Answered:
    return _say(dice, "background"), "no" if scape.noise is None else "yes"


def _loudness(scape: Events, dice: Dice) -> Answered:
    if not _change(scape):
        return None
    return _say(dice, "loudness"), _change(scape).removeprefix(" getting ")


_QUESTIONS: dict[str, Callable[[Events, Dice], Answered]] = {
    "count": _count,
    "exists": _exists,
    "order": _order,
    "first": _first,
    "pitch": _pitch,
    "sweep": _sweep,
    "melody": _melody,
    "rhythm": _rhythm,
    "noise": _noise,
    "background": _background,
    "loudness": _loudness,
}
