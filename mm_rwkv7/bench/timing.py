"""Repeated timings of peers, taken in turns so that a slow moment of the machine meets all of them."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """Milliseconds (or another unit) over all rounds: median and the quartiles around it."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def rate(self, amount: float) -> "Timing":
        """An amount of work, done in so many milliseconds, as work a second."""
        return Timing(*(1000 * amount / time_ for time_ in (self.median, self.high, self.low)))


def time_in_turns(
    peers: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    """Calls every peer once to warm up and then once a round (at least 2 rounds); progress goes to stderr."""
    return sample_in_turns({name: partial(milliseconds, run, device) for name, run in peers.items()}, rounds)


def sample_in_turns(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """The same for peers that take their own time and return it."""
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for round_ in range(rounds + 1):
        for name, sample in peers.items():
            found = sample()
            if round_:
                taken[name].append(found)
        print(f"\rround {round_} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: summary(samples) for name, samples in taken.items()}


def milliseconds(run: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """How long a call takes, on a device whose work before it is done and whose work from it is waited for."""
    return timed(run, device)[0]


def timed(run: Callable[[], Result], device: torch.device | str = "cpu") -> tuple[float, Result]:
    """The same, and what the call returns."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else int
    wait()
    start = time.perf_counter()
    result = run()
    wait()
    return (time.perf_counter() - start) * 1000, result


def summary(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)
