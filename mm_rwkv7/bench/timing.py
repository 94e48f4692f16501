"""Repeated timings of peers, taken in turns so that a slow moment of the machine meets all of them."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds over all rounds: median and the quartiles around it."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def time_in_turns(peers: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Calls every peer once to warm up and then once a round (at least 2 rounds); progress goes to stderr."""
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for round_ in range(rounds + 1):
        for name, run in peers.items():
            start = time.perf_counter()
            run()
            if round_:
                taken[name].append((time.perf_counter() - start) * 1000)
        print(f"\rround {round_} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: _summary(milliseconds) for name, milliseconds in taken.items()}


def _summary(milliseconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Timing(median, low, high)
