import random
from itertools import islice

import pytest

from training.data.order import Permutation, walk


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_a_permutation_takes_every_index_once(size: int, seed: int) -> None:
    found = [Permutation(size, str(seed))(i) for i in range(size)]
    assert sorted(found) == list(range(size)), f"seed {seed}"


def test_permutations_of_other_keys_have_nothing_in_common(seed: int) -> None:
    """Of a thousand indices a random other order keeps about one in place, and moves them by a third on average."""
    one, other = ([Permutation(1000, f"{seed} {key}")(i) for i in range(1000)] for key in "ab")
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 12, f"seed {seed}"
    moved = sum(abs(i - a) for i, a in enumerate(one)) / 1000
    assert 280 < moved < 390, f"seed {seed}"


@pytest.mark.parametrize("blocks", [[7], [3, 0, 5, 1], [1, 1], [0, 4]])
def test_an_epoch_has_every_item_once_and_goes_on_from_any_place(blocks: list[int], seed: int) -> None:
    total = sum(blocks)
    items = {(block, item) for block, count in enumerate(blocks) for item in range(count)}
    steps = list(islice(walk(blocks, str(seed)), 5 * total))
    for epoch in range(5):
        assert {step[:2] for step in steps[epoch * total : (epoch + 1) * total]} == items, f"seed {seed}"
    at = random.Random(seed).randrange(4 * total)
    again = list(islice(walk(blocks, str(seed), steps[at][2]), total))
    assert again == steps[at + 1 : at + 1 + total], f"seed {seed}, place {at}"


def test_epochs_come_in_different_orders(seed: int) -> None:
    steps = [step[:2] for step in islice(walk([50], str(seed)), 100)]
    assert steps[:50] != steps[50:], f"seed {seed}"
