"""Truthful questions and answers about a scene.

Answers are balanced: a yes/no question is asked only where both answers could be had, and a coin picks one
before the words are chosen from a distribution that is the same for both; counts are picked against their
natural frequency. So the question's words say next to nothing about its answer.
"""

from collections.abc import Callable, Sequence

from mm_rwkv7.synthetic import attributes, counting, spatial
from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.objects import Object, visible_on
from mm_rwkv7.synthetic.view import Answered, View

_ASKERS: dict[str, Callable[[View], Answered]] = {
    "count": counting.count,
    "colour": attributes.colour,
    "shape": attributes.shape,
    "size": attributes.size,
    "texture": attributes.texture,
    "exists": counting.exists,
    "relation": spatial.relation,
    "neighbour": spatial.neighbour,
    "place": spatial.place,
    "compare": counting.compare,
    "text": attributes.text,
    "background": attributes.background,
    "outermost": spatial.outermost,
}
_FIRST = [
    "count",
    "colour",
    "shape",
    "size",
    "texture",
    "exists",
    "relation",
    "neighbour",
    "place",
    "compare",
    "outermost",
]
_SECOND = [
    "count",
    "exists",
    "relation",
    "colour",
    "place",
    "background",
    "count",
    "exists",
    "shape",
    "texture",
]


def ask(objects: Sequence[Object], background: str, dice: Dice, most: int = 8) -> tuple[tuple[str, str, str], ...]:
    """Up to `most` different (question, answer, kind) triples about the objects, of as many kinds as fit."""
    shapes = tuple(item for item in objects if item.text is None)
    view = View(tuple(objects), shapes, background, visible_on(background), dice)
    asked: dict[str, tuple[str, str]] = {}
    for kind in _running_order(view):
        answered = _ASKERS[kind](view)
        if answered is not None:
            asked.setdefault(answered[0], (answered[1], kind))
        if len(asked) == most:
            break
    return tuple((question, answer, kind) for question, (answer, kind) in asked.items())


def _running_order(view: View) -> list[str]:
    dice = view.dice
    first = [*_FIRST, "background"] if dice.chance(0.4) else _FIRST
    text = ["text"] if view.text is not None else []
    return text + dice.shuffled(first) + dice.shuffled(_SECOND)
