"""Draws a layout as a picture.

Every coordinate is rounded to whole pixels of an enlarged canvas before Pillow sees it, and angles come from
tables of rounded integers, so that the bytes do not depend on a machine's floating-point library.
"""

import math
import os
from functools import cache
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from mm_rwkv7.synthetic.layout import Background, Layout, Look
from mm_rwkv7.synthetic.objects import Object

_GRID = 96  # noise cells a side, whatever the picture's size
_ONE = 1024  # outlines and tables are in 1024ths of the radius

Points = tuple[tuple[int, int], ...]
Colour = tuple[int, int, int] | int


def draw(layout: Layout, size: int) -> Image.Image:
    """The layout as an RGB picture of `size` x `size` pixels."""
    scale = 3 if size <= 128 else 2
    side = size * scale
    canvas = _background(layout.background, side)
    for item, look in zip(layout.objects, layout.looks, strict=True):
        if item.text is None:
            _draw_shape(canvas, item, look)
        else:
            _draw_text(canvas, item, item.text, look)
    return canvas.reduce(scale)


def _background(ground: Background, side: int) -> Image.Image:
    if not ground.noise:
        return Image.new("RGB", (side, side), ground.rgb)
    raw = np.random.PCG64(ground.noise_seed).random_raw(_GRID * _GRID // 8).astype("<u8").tobytes()
    noise = Image.frombytes("L", (_GRID, _GRID), raw)
    step = np.arange(-128, 128) * ground.noise // 128
    bands = [noise.point(np.clip(c + step, 0, 255).tolist()) for c in ground.rgb]
    return Image.merge("RGB", bands).resize((side, side), Image.Resampling.NEAREST)


def _draw_shape(canvas: Image.Image, item: Object, look: Look) -> None:
    side = canvas.width
    x, y, radius = round(item.x * side), round(item.y * side), round(item.radius * side)
    _silhouette(ImageDraw.Draw(canvas), item.kind, x, y, radius, look.angle, look.rgb)
    if item.texture == "plain":
        return
    pattern = _stripes if item.texture == "striped" else _dots
    inside = Image.new("L", (2 * radius + 1, 2 * radius + 1))  # within a rim, which keeps the outline clear
    _silhouette(ImageDraw.Draw(inside), item.kind, radius, radius, radius * 5 // 6, look.angle, 255)
    marks = ImageChops.darker(inside, pattern(inside.width, side, look.phase))
    canvas.paste(_contrast(look.rgb), (x - radius, y - radius), marks)


def _silhouette(pen: ImageDraw.ImageDraw, kind: str, x: int, y: int, radius: int, angle: int, ink: Colour) -> None:
    if kind in ("circle", "ring"):
        radius = radius * 9 // 10
        box = (x - radius, y - radius, x + radius, y + radius)
        if kind == "circle":
            pen.ellipse(box, fill=ink)
        else:
            pen.ellipse(box, outline=ink, width=radius * 2 // 5)
        return
    half = _ONE // 2
    pen.polygon(
        [(x + (px * radius + half) // _ONE, y + (py * radius + half) // _ONE) for px, py in _outline(kind, angle)],
        fill=ink,
    )


def _contrast(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """A much lighter colour of the same hue for a dark one, a much darker one for a light one."""
    red, green, blue = rgb
    if 3 * red + 6 * green + blue > 1150:
        return red * 2 // 5, green * 2 // 5, blue * 2 // 5
    return 255 - (255 - red) * 2 // 5, 255 - (255 - green) * 2 // 5, 255 - (255 - blue) * 2 // 5


def _stripes(width: int, side: int, phase: int) -> Image.Image:
    """Slanting lines, 2 of 4.8 pixels at 96, as a mask of `width` squared."""
    thick, slant = side // 48, width // 2
    image = Image.new("L", (width, width))
    pen = ImageDraw.Draw(image)
    for x in _steps(width + slant, side, phase):
        pen.polygon([(x, 0), (x + thick, 0), (x + thick - slant, width), (x - slant, width)], fill=255)
    return image


def _dots(width: int, side: int, phase: int) -> Image.Image:
    """Round dots on a staggered grid, 2.6 pixels wide and 4.8 apart at 96, as a mask of `width` squared."""
    radius = side // 72
    image = Image.new("L", (width, width))
    pen = ImageDraw.Draw(image)
    for row, y in enumerate(_steps(width, side, phase)):
        for x in _steps(width, side, row % 2 * 500):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image


def _steps(width: int, side: int, phase: int) -> list[int]:
    """Pixels a twentieth of the side apart that cover `width`, shifted by thousandths of a step."""
    return [(phase + 1000 * i) * side // 20000 for i in range(-1, width * 20 // side + 2)]


def _draw_text(canvas: Image.Image, item: Object, text: str, look: Look) -> None:
    side = canvas.width
    wide = round(2 * item.half_width * side)
    height = round(item.radius * side * 8 / 5)
    length = _font(look.font, height).getlength(text)
    if length > wide:
        height = int(height * wide / length)
    middle = round(item.x * side), round(item.y * side)
    ImageDraw.Draw(canvas).text(middle, text, fill=look.rgb, font=_font(look.font, height), anchor="mm")


@cache
def _font(name: str, height: int) -> ImageFont.FreeTypeFont:
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        raise ImportError("scenes with text need the fonts in matplotlib's package, which is not installed")
    path = os.path.join(os.path.dirname(found.origin), "mpl-data", "fonts", "ttf", name)
    return ImageFont.truetype(path, height, layout_engine=ImageFont.Layout.BASIC)


@cache
def _outline(kind: str, angle: int) -> Points:
    """The corners of a shape in a circle of radius 1024, turned by `angle` degrees."""
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    return tuple((round(x * cos - y * sin), round(x * sin + y * cos)) for x, y in _CORNERS[kind]())


def _around(radii: tuple[int, ...], start: int) -> list[tuple[float, float]]:
    """Points at these distances, evenly spread around the middle, the first at `start` degrees."""
    step = 360 / len(radii)
    angles = [math.radians(start + i * step) for i in range(len(radii))]
    return [(radius * math.cos(a), radius * math.sin(a)) for radius, a in zip(radii, angles, strict=True)]


def _cross() -> list[tuple[float, float]]:
    long, short = 960, 330
    quarter = [(short, -long), (short, -short), (long, -short)]
    points: list[tuple[float, float]] = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _heart() -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for degrees in range(0, 360, 10):
        t = math.radians(degrees)
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x * 59, -(y + 2.5) * 59))
    return points


_CORNERS = {
    "square": lambda: _around((_ONE,) * 4, 45),
    "triangle": lambda: _around((_ONE,) * 3, -90),
    "star": lambda: _around((_ONE, 430) * 5, -90),
    "diamond": lambda: _around((720, _ONE) * 2, 0),
    "cross": _cross,
    "heart": _heart,
}
