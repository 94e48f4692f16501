"""Phrases that point at exactly one object, or at a set of shapes."""

from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter

from mm_rwkv7.synthetic.captions import plural
from mm_rwkv7.synthetic.dice import Dice
from mm_rwkv7.synthetic.objects import Object

Fields = tuple[str, ...]

_SHAPE: tuple[Fields, ...] = (
    ("kind",),
    ("colour", "kind"),
    ("size", "kind"),
    ("texture", "kind"),
    ("size", "colour", "kind"),
    ("colour", "texture", "kind"),
)
_TEXT: tuple[Fields, ...] = (("kind",), ("colour", "kind"))
_UNKNOWN_KIND: tuple[Fields, ...] = (
    ("colour",),
    ("size",),
    ("texture",),
    ("size", "colour"),
    ("colour", "texture"),
)


def refer(dice: Dice, target: Object, objects: Sequence[Object], hidden: str = "") -> str | None:
    """A phrase such as "small red circle" that fits only `target`, without telling the field `hidden`.

    One of the shortest such phrases, or None where there is none.
    """
    forms = _TEXT if target.text is not None else _UNKNOWN_KIND if hidden == "kind" else _SHAPE
    fitting: list[Fields] = []
    for fields in forms:
        if fitting and len(fields) > len(fitting[0]):
            break
        if hidden not in fields and _only(target, objects, fields):
            fitting.append(fields)
    return phrase(target, dice.pick(fitting)) if fitting else None


def _only(target: Object, objects: Sequence[Object], fields: Fields) -> bool:
    read = _reader(fields)
    return [read(item) for item in objects].count(read(target)) == 1


@cache
def _reader(fields: Fields) -> Callable[[Object], object]:
    return attrgetter(*fields)


def phrase(item: Object, fields: Fields) -> str:
    """The object's values of these fields: "red circle", "striped shape"."""
    return single({field: getattr(item, field) for field in fields})


def single(values: dict[str, str]) -> str:
    """The phrase for a shape with these values; one without a kind is a "shape"."""
    return " ".join([*_adjectives(values), values.get("kind", "shape")])


def group(values: dict[str, str]) -> str:
    """The phrase for all shapes with these values: "red circles", "striped shapes"."""
    return " ".join([*_adjectives(values), plural(values.get("kind", "shape"))])


def _adjectives(values: dict[str, str]) -> list[str]:
    return [values[field] for field in ("size", "colour", "texture") if field in values]
