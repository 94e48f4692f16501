from dataclasses import dataclass

import pytest

from mm_rwkv7.typed import build


@dataclass(frozen=True)
class Circle:
    radius: int
    kind: str = "circle"


@dataclass(frozen=True)
class Box:
    width: int
    inside: "tuple[Circle | Box, ...]" = ()
    kind: str = "box"


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Box | None = None


def test_a_union_is_told_apart_by_kind_and_is_the_first_without_one() -> None:
    assert build(Drawing, {"shape": {"radius": 2}}) == Drawing(Circle(2))
    assert build(Drawing, {"shape": None}) == Drawing()
    nested = {"kind": "box", "width": 1, "inside": [{"radius": 3}, {"kind": "box", "width": 4}]}
    assert build(Drawing, {"shape": nested}) == Drawing(Box(1, (Circle(3), Box(4))))


@pytest.mark.parametrize("value", [{"kind": "star"}, {"kind": ["box"]}])
def test_an_unknown_kind_is_named_with_those_there_are(value: object) -> None:
    with pytest.raises(ValueError, match=r"config\.shape is of kind .*expected one of \['box', 'circle'\]"):
        build(Drawing, {"shape": value})


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.shape is 3"):
        build(Drawing, {"shape": 3})
