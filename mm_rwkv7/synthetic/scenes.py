"""Generated scenes: a picture drawn from a seed, with truthful captions, questions and answers.

>>> scene = sample(seed=7)
>>> scene.image.size
(192, 192)
"""

from dataclasses import dataclass

from PIL.Image import Image

from mm_rwkv7.synthetic.captions import caption, regions
from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.drawing import draw
from mm_rwkv7.synthetic.layout import lay_out
from mm_rwkv7.synthetic.objects import COLOURS, KINDS, PLACES, SIZES, TEXTURES, WORDS, Object
from mm_rwkv7.synthetic.questions import ask

__all__ = [
    "COLOURS",
    "KINDS",
    "PLACES",
    "SIZES",
    "TEXTURES",
    "WORDS",
    "Object",
    "Scene",
    "count_objects",
    "questions",
    "sample",
]

_SMALLEST, _LARGEST = 48, 4096


@dataclass(frozen=True)
class Scene:
    """A picture and what is true of it.

    `qa` holds (question, answer, kind) triples; `regions` one phrase with a place for each of `objects`;
    `background` the background's colour name.
    """

    image: Image
    caption: str
    qa: tuple[tuple[str, str, str], ...]
    objects: tuple[Object, ...]
    regions: tuple[str, ...]
    background: str


def sample(seed: int, size: int = 192) -> Scene:
    """The scene of a seed, as a picture of `size` x `size` pixels.

    A seed shows the same scene at every size, and the same bytes on every machine. By custom even seeds
    are for training and odd ones for evaluation. Raises ValueError for a negative seed or a size outside
    48..4096.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    if not _SMALLEST <= size <= _LARGEST:
        raise ValueError(f"size is {size}, expected {_SMALLEST} to {_LARGEST} pixels")
    dice = Dice(seed)
    layout = lay_out(dice)
    return Scene(
        image=draw(layout, size),
        caption=caption(layout, dice),
        qa=ask(layout.objects, layout.background.colour, dice),
        objects=layout.objects,
        regions=regions(layout),
        background=layout.background.colour,
    )


def questions(seed: int) -> tuple[tuple[str, str, str], ...]:
    """`sample(seed).qa`, at a fraction of the time it takes to draw the picture."""
    dice = Dice(seed)
    layout = lay_out(dice)
    caption(layout, dice)  # throws the dice too
    return ask(layout.objects, layout.background.colour, dice)


def count_objects(seed: int) -> int:
    """How many objects the scene of a seed has, at a fraction of the time it takes to draw it."""
    return len(lay_out(Dice(seed)).objects)
