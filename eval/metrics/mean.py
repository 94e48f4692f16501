"""Means, whole and by group."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

Key = TypeVar("Key", str, int)


def mean(values: Iterable[float]) -> float:
    """Their sum by their number; a ValueError for none."""
    numbers = list(values)
    if not numbers:
        raise ValueError("a mean of nothing")
    return sum(numbers) / len(numbers)


def mean_by(values: Iterable[float], groups: Sequence[Key]) -> dict[Key, float]:
    """The mean of each group's values, groups in sorted order."""
    members: dict[Key, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: mean(members[group]) for group in sorted(members)}
