"""However a feed ends, its workers end with it, and what went wrong is told in one line."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from training.distributed import World
from training.feed import Packs

ALONE = World(torch.device("cpu"))


class Numbers:
    """A stream of packs, of which the one numbered `broken` cannot be read."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def batches(
        self, position: Any = None, rank: int = 0, world: int = 1, packs_per_step: int = 1
    ) -> Iterator[dict[str, Any]]:
        number = rank
        while True:
            if number == self.broken:
                try:
                    raise OSError("inside")
                except OSError as error:
                    raise ValueError("talk.json, record 3: red.png is no picture") from error
            yield {"number": number}
            number += world


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_is_told_as_it_is_and_nobody_is_left(workers: int) -> None:
    steps = Packs(Numbers(broken=21), 2, workers).steps(0, None, ALONE)
    assert [[pack["number"] for pack in next(steps)] for _ in range(2)] == [[0, 1], [2, 3]]
    assert len(multiprocessing.active_children()) == workers  # none has come as far as 21
    with pytest.raises(ValueError, match=r"^talk\.json, record 3: red\.png is no picture$"):
        list(steps)
    assert multiprocessing.active_children() == []


def test_closing_a_feed_ends_its_workers() -> None:
    """Also when something else went wrong, and its traceback holds on to the feed."""
    steps = Packs(Numbers(), 2, 2).steps(0, None, ALONE)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()
    assert multiprocessing.active_children() == []
