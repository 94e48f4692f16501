"""Truthful sentences about a layout, and the phrases they are made of."""

from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.layout import Layout
from mm_rwkv7.synthetic.objects import TEXT_KINDS, Object

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_DETAILS = (("size", "colour", "texture"), ("size", "colour"), ("colour",))

_MOST_WORDS = 40
_SIDES = ("left of", "right of", "above", "below")
_AT = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the center",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)


def plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _adjectives(item: Object, detail: tuple[str, ...]) -> str:
    """The object's size, colour and texture as far as `detail` asks; "plain" goes without saying."""
    if item.text is not None:
        return item.colour
    return " ".join(word for field in detail if (word := getattr(item, field)) != "plain")


def regions(layout: Layout) -> tuple[str, ...]:
    """One phrase per object with its place, such as "a small red circle at the top left"."""
    return tuple(f"{_one(item, _DETAILS[0])} {_AT[item.cell]}" for item in layout.objects)


def caption(layout: Layout, dice: Dice) -> str:
    """One or two sentences that name every object and the background, in at most 40 words."""
    form = dice.pick((_relation, _listing, _listing, _counting))
    for detail in _DETAILS[dice.below(len(_DETAILS)) :]:
        sentence = form(layout, detail, dice)
        if len(sentence.split()) <= _MOST_WORDS:
            break
    return sentence


def _one(item: Object, detail: tuple[str, ...]) -> str:
    if item.text is not None:
        return f"the {_adjectives(item, detail)} {item.kind} {item.text}"
    return with_article(f"{_adjectives(item, detail)} {item.kind}")


def _groups(items: tuple[Object, ...], detail: tuple[str, ...]) -> list[str]:
    """Objects that read the same are counted together: "two green hearts"."""
    texts = [_one(item, detail) for item in items if item.text is not None]
    alike: dict[tuple[str, str], list[Object]] = {}
    for item in items:
        if item.kind not in TEXT_KINDS:
            alike.setdefault((_adjectives(item, detail), item.kind), []).append(item)
    shapes = [
        _one(group[0], detail) if len(group) == 1 else f"{_NUMBERS[len(group)]} {words} {plural(kind)}"
        for (words, kind), group in alike.items()
    ]
    return shapes + texts


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _ground(layout: Layout) -> str:
    return f"noisy {layout.background.colour}" if layout.background.noise else layout.background.colour


def _listing(layout: Layout, detail: tuple[str, ...], dice: Dice) -> str:
    things, ground = _join(dice.shuffled(_groups(layout.objects, detail))), _ground(layout)
    return dice.pick(
        (
            f"{things} on {with_article(ground)} background",
            f"on {with_article(ground)} background there {_verb(things)} {things}",
            f"a picture of {things} on {with_article(ground)} background",
            f"{things}; the background is {ground}",
        )
    )


def _counting(layout: Layout, detail: tuple[str, ...], dice: Dice) -> str:
    shapes = sum(item.text is None for item in layout.objects)
    if not shapes:
        return _listing(layout, detail, dice)
    count = "one shape" if shapes == 1 else f"{_NUMBERS[shapes]} shapes"
    things = _join(_groups(layout.objects, detail))
    return f"{count} on {with_article(_ground(layout))} background: {things}"


def _relation(layout: Layout, detail: tuple[str, ...], dice: Dice) -> str:
    if len(layout.objects) < 2:
        return _listing(layout, detail, dice)
    first, second, *rest = dice.shuffled(layout.objects)
    side = _side(first, second)
    sentence = f"{_one(first, detail)} {side} {_one(second, detail)}"
    if rest:
        sentence += f", and {_join(_groups(tuple(rest), detail))}"
    return f"{sentence} on {with_article(_ground(layout))} background"


def _side(first: Object, second: Object) -> str:
    """How the first lies to the second, along the axis on which the gap between them is wider."""
    dx, dy = first.x - second.x, first.y - second.y
    across = abs(dx) - first.half_width - second.half_width
    down = abs(dy) - first.half_height - second.half_height
    return _SIDES[dx > 0] if across >= down else _SIDES[2 + (dy > 0)]


def _verb(things: str) -> str:
    return "are" if things.startswith(_NUMBERS[2:]) else "is"
