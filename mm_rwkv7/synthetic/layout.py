"""Decides what stands where: everything about a scene but its pixels and its words."""

from dataclasses import dataclass

from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.objects import (
    COLOURS,
    KINDS,
    RGB,
    SIZES,
    TEXT_KINDS,
    TEXTURED_KINDS,
    TEXTURES,
    WORDS,
    Object,
    readable_on,
    visible_on,
)

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")

_UNIT = 1000  # layout works in thousandths of the side
_GAP = 15
_TRIES = 30
_RADIUS = {"small": (79, 87), "large": (134, 146)}
_TEXT_RADIUS = 100
_COLOUR_JITTER = 10


@dataclass(frozen=True)
class Look:
    """How one object is drawn where the words leave it open: exact colour, angle in degrees, shift of the
    texture in thousandths of its period, font."""

    rgb: tuple[int, int, int]
    angle: int
    phase: int
    font: str


@dataclass(frozen=True)
class Background:
    """Colour name, exact colour, strength of the noise (0: plain) and the noise's own seed."""

    colour: str
    rgb: tuple[int, int, int]
    noise: int
    noise_seed: int


@dataclass(frozen=True)
class Layout:
    background: Background
    objects: tuple[Object, ...]
    looks: tuple[Look, ...]


def lay_out(dice: Dice) -> Layout:
    """A layout of 1 to 8 objects, one of them perhaps a text, none touching another."""
    colour = dice.pick(COLOURS)
    noise = dice.between(12, 40) if dice.chance(0.4) else 0
    background = Background(colour, _jittered(dice, colour), noise, dice.below(2**32))
    shapes = dice.between(1, 8)
    objects: list[Object] = []
    if shapes < 8 and dice.chance(0.4):
        objects.append(_text(dice, readable_on(colour)))
    objects += _shapes(dice, shapes, visible_on(colour), objects)
    objects = dice.shuffled(objects)
    return Layout(background, tuple(objects), tuple(_look(dice, o) for o in objects))


def _text(dice: Dice, colours: tuple[str, ...]) -> Object:
    kind = dice.pick(TEXT_KINDS)
    text = str(dice.below(10 if dice.chance(0.25) else 100)) if kind == "number" else dice.pick(WORDS)
    size = "large" if len(text) < 4 and dice.chance(0.5) else "small"
    radius = _TEXT_RADIUS * 5 // 4 if size == "large" else _TEXT_RADIUS
    draft = Object(kind, dice.pick(colours), size, "plain", text, 0.5, 0.5, radius / _UNIT)
    wide = int(draft.half_width * _UNIT) + 10
    x, y = dice.between(wide, _UNIT - wide), dice.between(radius + 10, _UNIT - radius - 10)
    return Object(kind, draft.colour, size, "plain", text, x / _UNIT, y / _UNIT, radius / _UNIT)


def _shapes(dice: Dice, n: int, visible: tuple[str, ...], placed: list[Object]) -> list[Object]:
    """Up to `n` shapes beside those in `placed`; fewer where there is no room."""
    kinds = dice.shuffled(KINDS)[: dice.between(1, 4)]
    colours = dice.shuffled(visible)[: dice.between(1, 4)]
    textures = dice.shuffled(TEXTURES)[: dice.between(1, 3)]
    large = dice.pick((0.0, 0.5, 1.0) if n < 4 else (0.0, 0.3, 0.5))
    sizes = sorted((SIZES[dice.chance(large)] for _ in range(n)), key=SIZES.index, reverse=True)
    shapes: list[Object] = []
    for size in sizes:
        spot = _free_spot(dice, size, placed + shapes)
        if spot is not None:
            x, y, radius = (value / _UNIT for value in spot)
            kind, colour = _skewed(dice, kinds), _skewed(dice, colours)
            texture = dice.pick(textures) if kind in TEXTURED_KINDS else "plain"
            shapes.append(Object(kind, colour, size, texture, None, x, y, radius))
    return shapes


def _skewed(dice: Dice, items: list[str]) -> str:
    """The first item more often than the others, so that groups of three and more alike are common."""
    return items[0] if dice.chance(0.4) else dice.pick(items)


def _free_spot(dice: Dice, size: str, placed: list[Object]) -> tuple[int, int, int] | None:
    """The middle and radius of a shape that keeps clear of those placed: a text is as wide as a stadium."""
    boxes = [(o.x * _UNIT, o.y * _UNIT, o.radius * _UNIT, (o.half_width - o.radius) * _UNIT) for o in placed]
    radius = dice.between(*_RADIUS[size])
    low, high = radius + 10, _UNIT - radius - 10
    for _ in range(_TRIES):
        x, y = dice.between(low, high), dice.between(low, high)
        for other_x, other_y, other_radius, slack in boxes:
            dx = max(abs(x - other_x) - slack, 0)
            if dx * dx + (y - other_y) ** 2 < (radius + other_radius + _GAP) ** 2:
                break
        else:
            return x, y, radius
    return None


def _look(dice: Dice, item: Object) -> Look:
    return Look(_jittered(dice, item.colour), dice.between(-8, 8), dice.below(1000), dice.pick(FONTS))


def _jittered(dice: Dice, colour: str) -> tuple[int, int, int]:
    red, green, blue = (min(max(c + dice.between(-_COLOUR_JITTER, _COLOUR_JITTER), 0), 255) for c in RGB[colour])
    return red, green, blue
