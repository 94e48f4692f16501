"""From parsed JSON or YAML to frozen dataclasses, with names and types checked.

Where a field may be one of several dataclasses, each of them has a field `kind` whose default is its name.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


def build(kind: Any, value: Any, where: str = "config") -> Any:
    """`value` as the dataclass (or field type) `kind`; a ValueError names the field that does not fit."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}, expected the fields of {kind.__name__}")
        hints = typing.get_type_hints(kind)
        known = {field.name for field in dataclasses.fields(kind)}
        if unknown := sorted(map(str, set(value) - known)):
            raise ValueError(f"{where} has unknown fields {unknown}, expected some of {sorted(known)}")
        required = {field.name for field in dataclasses.fields(kind) if _has_no_default(field)}
        if missing := sorted(required - set(value)):
            raise ValueError(f"{where} lacks {missing}")
        return kind(**{name: build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        choices = [argument for argument in arguments if argument is not type(None)]
        return build(choices[0] if len(choices) == 1 else _chosen(choices, value, where), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}, expected a list")
        return tuple(build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    expected = origin or kind
    if expected is not Any and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
        raise ValueError(f"{where} is {value!r}, expected {getattr(expected, '__name__', expected)}")
    return value


def _chosen(choices: list[Any], value: Any, where: str) -> Any:
    """The dataclass whose `kind` the value names; without a name, the first."""
    kinds = {choice.kind: choice for choice in choices}
    named = value.get("kind", choices[0].kind) if isinstance(value, Mapping) else choices[0].kind
    if not isinstance(named, str) or named not in kinds:
        raise ValueError(f"{where} is of kind {named!r}, expected one of {sorted(kinds)}")
    return kinds[named]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
