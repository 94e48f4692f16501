"""What a scene is made of: the words for it, and one object as a value."""

from dataclasses import dataclass
from functools import cache

KINDS = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
TEXT_KINDS = ("number", "word")
TEXTURED_KINDS = tuple(kind for kind in KINDS if kind != "ring")  # a ring is too thin to show a texture
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
RGB = {
    "red": (220, 35, 35),
    "green": (35, 155, 55),
    "blue": (35, 75, 225),
    "yellow": (245, 222, 45),
    "orange": (245, 135, 25),
    "purple": (135, 45, 175),
    "pink": (250, 150, 200),
    "brown": (125, 75, 35),
    "black": (22, 22, 22),
    "white": (246, 246, 246),
    "grey": (140, 140, 140),
    "cyan": (50, 208, 225),
}
COLOURS = tuple(RGB)
WORDS = tuple(
    """
    go no up yes one two six ten red sun sea sky cat dog fox pig bus car key box hat cup tea ice
    stop open exit shop bank cafe taxi book fish bird tree leaf star ball bell door
    left right north pizza hotel house bread apple
    """.split()  # noqa: SIM905
)
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

_DISTANCE = 140  # Euclidean, in RGB
_BRIGHTNESS_STEP = 45  # of 255


@dataclass(frozen=True)
class Object:
    """One thing in a scene. `x`, `y` (its middle) and `radius` are in units of the picture's side, 0..1.

    A shape lies inside the circle of that radius. A text (`kind` "number" or "word") lies inside the box
    of `half_width` by `half_height`; a shape has `text` None.
    """

    kind: str
    colour: str
    size: str
    texture: str
    text: str | None
    x: float
    y: float
    radius: float

    @property
    def half_width(self) -> float:
        return self.radius * (1.0 if self.text is None else max(1.0, 0.2 + 0.53 * len(self.text)))

    @property
    def half_height(self) -> float:
        return self.radius

    @property
    def cell(self) -> int:
        """Which of the nine places holds the middle: an index into `PLACES`."""
        return 3 * min(int(self.y * 3), 2) + min(int(self.x * 3), 2)


@cache
def visible_on(background: str) -> tuple[str, ...]:
    """The colours whose shapes stand out on a background of this colour."""
    ground = RGB[background]
    return tuple(
        name for name, rgb in RGB.items() if sum((c - g) ** 2 for c, g in zip(rgb, ground, strict=True)) >= _DISTANCE**2
    )


@cache
def readable_on(background: str) -> tuple[str, ...]:
    """The colours whose letters, thinner than shapes, stand out: those that are lighter or darker too."""
    ground = _brightness(background)
    return tuple(name for name in visible_on(background) if abs(_brightness(name) - ground) >= _BRIGHTNESS_STEP)


def _brightness(colour: str) -> int:
    red, green, blue = RGB[colour]
    return (30 * red + 59 * green + 11 * blue) // 100
