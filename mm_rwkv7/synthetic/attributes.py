"""Questions about one thing: its colour, shape, size, texture, what it says."""

from collections.abc import Sequence

from mm_rwkv7.synthetic.objects import TEXTURED_KINDS, Object
from mm_rwkv7.synthetic.references import refer
from mm_rwkv7.synthetic.view import Answered, View


def colour(view: View) -> Answered:
    """What colour is the star?"""
    return _attribute(view, "colour", view.objects)


def shape(view: View) -> Answered:
    """What shape is the red shape?"""
    return _attribute(view, "kind", view.shapes)


def texture(view: View) -> Answered:
    """Is the star plain, striped or dotted?"""
    return _attribute(view, "texture", [item for item in view.shapes if item.kind in TEXTURED_KINDS])


def size(view: View) -> Answered:
    """Is the star small or large? Only where both are there to compare, or a single shape."""
    sizes = {item.size for item in view.shapes}
    if len(sizes) == 1 and len(view.shapes) > 1:
        return None
    return _attribute(view, "size", view.shapes)


def _attribute(view: View, field: str, among: Sequence[Object]) -> Answered:
    """Asks for one field of one object, each value present being as likely."""
    if not among:
        return None
    dice = view.dice
    value = dice.pick(list(dict.fromkeys([getattr(item, field) for item in among])))
    for item in dice.shuffled([item for item in among if getattr(item, field) == value]):
        which = refer(dice, item, view.objects, hidden=field)
        if which is not None:
            return view.say(field, which=which), value
    return None


def text(view: View) -> Answered:
    """What does the text say?"""
    item = view.text
    if item is None or item.text is None:
        return None
    return view.say(item.kind), item.text


def background(view: View) -> Answered:
    """What colour is the background?"""
    return view.say("background"), view.background
