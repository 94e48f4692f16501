"""Questions about where things lie. Only what is clear to the eye is asked."""

from mm_rwkv7.synthetic.objects import PLACES, Object
from mm_rwkv7.synthetic.references import phrase, refer
from mm_rwkv7.synthetic.view import Answered, View

_CLEAR = 0.12  # the least distance along an axis, in sides of the picture, that counts as left of, above, ...
_LEVEL = 0.03  # objects no farther back than this are not clearly on the other side
_BORDER = 0.04  # objects closer than this to a border between places are not asked for their place
_AHEAD = 0.06  # the lead of the leftmost (topmost, ...) shape over the next
_DIRECTIONS = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_EXTREMES = {"leftmost": ("x", -1), "rightmost": ("x", 1), "topmost": ("y", -1), "bottommost": ("y", 1)}


def relation(view: View) -> Answered:
    """Is the star left of the circle?"""
    dice, yes = view.dice, view.dice.chance(0.5)
    for first in dice.shuffled(view.objects):
        for second in dice.shuffled(view.objects)[:3]:
            sides = [side for side in _DIRECTIONS if first is not second and _lies(first, side, second)]
            if not sides:
                continue
            one, other = refer(dice, first, view.objects), refer(dice, second, view.objects)
            if one is not None and other is not None:
                side = dice.pick(sides)
                side = side if yes else _OPPOSITE[side]
                return view.say("relation", one=one, side=side, other=other), "yes" if yes else "no"
    return None


def neighbour(view: View) -> Answered:
    """What is left of the star? Only where a single object is."""
    dice = view.dice
    for target in dice.shuffled(view.shapes):
        for side in dice.shuffled(tuple(_DIRECTIONS)):
            there = [item for item in view.objects if item is not target and _offset(item, side, target) > -_LEVEL]
            if len(there) == 1 and there[0].text is None and _lies(there[0], side, target):
                which = refer(dice, target, view.objects)
                if which is not None:
                    return view.say("neighbour", side=side, which=which), phrase(there[0], ("colour", "kind"))
    return None


def place(view: View) -> Answered:
    """Where is the star? One of `PLACES`."""
    dice = view.dice
    for item in dice.shuffled(view.objects):
        if min(abs(v - border) for v in (item.x, item.y) for border in (1 / 3, 2 / 3)) >= _BORDER:
            which = refer(dice, item, view.objects)
            if which is not None:
                return view.say("place", which=which), PLACES[item.cell]
    return None


def outermost(view: View) -> Answered:
    """What is the leftmost shape?"""
    if len(view.shapes) < 2:
        return None
    for name in view.dice.shuffled(tuple(_EXTREMES)):
        axis, sign = _EXTREMES[name]
        last, first = sorted(view.shapes, key=lambda item: sign * getattr(item, axis))[-2:]
        if abs(getattr(first, axis) - getattr(last, axis)) >= _AHEAD:
            return view.say("outermost", which=name), phrase(first, ("colour", "kind"))
    return None


def _offset(first: Object, side: str, second: Object) -> float:
    axis, sign = _DIRECTIONS[side]
    return sign * (getattr(first, axis) - getattr(second, axis))


def _margin(first: Object, side: str, second: Object) -> float:
    """How far apart two objects must lie for the side to be clear; half of a text's width at least."""
    extent = "half_width" if _DIRECTIONS[side][0] == "x" else "half_height"
    return max([_CLEAR, *[getattr(item, extent) for item in (first, second) if item.text is not None]])


def _lies(first: Object, side: str, second: Object) -> bool:
    return _offset(first, side, second) >= _margin(first, side, second)
