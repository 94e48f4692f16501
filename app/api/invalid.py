"""What is wrong with a request's body, told for people: the field's place in it, what came and what was expected."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

LONGEST = 60  # characters of what came
PLAINLY = {
    "Input should be ": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "an integer",
    "valid ": "",
}


def fault(error: RequestValidationError) -> tuple[str, str | None]:
    """Of all that is wrong with a body or a query the first: what is said of it, and the field."""
    faults = error.errors()
    if faults[0]["type"] == "json_invalid":
        return "the body is no JSON", None
    if faults[0]["type"] == "string_unicode":
        return "the body has half a surrogate pair, expected Unicode", None
    body = error.body if faults[0]["loc"][0] == "body" else None
    places = [_place(one, body) for one in faults]
    if not (place := places[0]):
        return (
            f"the body is {_told(faults[0].get('input'))}, expected a JSON object and Content-Type: application/json",
            None,
        )
    # Where several kinds of value are allowed there is a fault for each; the one that got furthest was meant.
    place = max((other for other in places if _field(other) == _field(place)), key=_depth)
    meant = [one for one, other in zip(faults, places, strict=True) if other == place]
    meant = [one for one in meant if not one["type"].endswith("_type")] or meant
    if meant[0]["type"].startswith("union_tag"):
        place = f"{place}.type"
    return _sentence(place, meant), place


def _sentence(place: str, meant: Sequence[Mapping[str, Any]]) -> str:
    first = meant[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return f"{place} is missing"
    if kind == "extra_forbidden":
        return f"{place}: there is no such field"
    if kind == "value_error":
        return f"{place} {context['error']}"
    came = context["tag"] if kind == "union_tag_invalid" else first.get("input")
    expected = " or ".join(dict.fromkeys(map(_expected, meant)))
    return f"{place} is {_told(came)}, expected {expected}"


def _place(one: Mapping[str, Any], body: Any) -> str:
    """messages[0].content[1].type: without the names of the kinds of value that were tried on the way."""
    steps: Sequence[str | int] = one["loc"][1:]
    if body is None:
        return ".".join(map(str, steps))
    value, place = body, ""
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if isinstance(step, int):
            place += f"[{step}]"
            value = value[step] if isinstance(value, list) and step < len(value) else None
        elif isinstance(value, dict) and step in value:
            place += f".{step}"
            value = value[step]
        elif last and isinstance(value, dict) and (one["type"] == "missing" or one.get("input") is None):
            place += f".{step}"
    return place.removeprefix(".")


def _field(place: str) -> str:
    return place.partition("[")[0].partition(".")[0]


def _depth(place: str) -> int:
    return place.count(".") + place.count("[")


def _expected(one: Mapping[str, Any]) -> str:
    kind, context = one["type"], one.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "union_tag_invalid":
        return f"one of {context['expected_tags']}"
    if kind.startswith("model"):
        return "an object"
    unit = "characters" if kind.startswith("string") else "of them"
    if kind.endswith("too_long"):
        return f"at most {context['max_length']} {unit}"
    if kind.endswith("too_short"):
        return f"at least {context['min_length']} {unit}"
    told: str = one["msg"].partition(",")[0]
    for theirs, ours in PLAINLY.items():
        told = told.replace(theirs, ours)
    return told


def _told(value: Any) -> str:
    """As JSON, of a list or an object no more than that it is one: there may be somebody's picture in it."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    told = repr(value[: LONGEST + 1]) if isinstance(value, str) else json.dumps(value, default=str)
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
