"""A scene as the questions see it."""

from dataclasses import dataclass

from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.objects import KINDS, SIZES, TEXTURES, Object
from mm_rwkv7.synthetic.phrasings import PHRASINGS

Answered = tuple[str, str] | None  # question and answer, or None where the scene allows none

_VALUES = {"kind": KINDS, "size": SIZES, "texture": TEXTURES}


@dataclass(frozen=True)
class View:
    """All objects, those that are shapes, the background's colour, the colours that could stand on it."""

    objects: tuple[Object, ...]
    shapes: tuple[Object, ...]
    background: str
    colours: tuple[str, ...]
    dice: Dice

    @property
    def text(self) -> Object | None:
        return next((item for item in self.objects if item.text is not None), None)

    def values(self, field: str) -> tuple[str, ...]:
        """What the field of a shape could have been in this scene."""
        return self.colours if field == "colour" else _VALUES[field]

    def say(self, form: str, **values: str) -> str:
        """The question in one of its phrasings."""
        return self.dice.pick(PHRASINGS[form]).format(**values)
