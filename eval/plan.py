"""Which samples are asked, which of them together, and by which of several runs."""

from collections.abc import Sequence
from itertools import groupby

from eval.task import Sample
from mm_rwkv7.synthetic.dice import Dice


def subset(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """`limit` of the samples, drawn by `seed`, in their order; all of them without a limit."""
    if limit is None or limit >= len(samples):
        return list(samples)
    if limit < 1:
        raise ValueError(f"--limit is {limit}, expected at least 1")
    chosen = set(Dice(seed).shuffled(range(len(samples)))[:limit])
    return [sample for i, sample in enumerate(samples) if i in chosen]


def batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """The samples in their order, up to `size` together. Neighbours with equal media stay together if they fit."""
    if size < 1:
        raise ValueError(f"--batch is {size}, expected at least 1")
    found: list[list[Sample]] = [[]]
    for group in same_media(samples):
        if len(found[-1]) + len(group) > size and found[-1]:
            found.append([])
        for sample in group:
            if len(found[-1]) == size:
                found.append([])
            found[-1].append(sample)
    return [batch for batch in found if batch]


def same_media(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Runs of neighbours with equal pictures and sounds; samples without any are one run."""
    return [list(group) for _, group in groupby(samples, key=lambda sample: (sample.images, sample.sounds))]


def dealt(plan: Sequence[list[Sample]], shard: tuple[int, int] | None) -> list[list[Sample]]:
    """The batches of one of several runs: every n-th, beginning with the i-th. A batch is never cut, so that answers do
    not depend on how many runs there are."""
    if shard is None:
        return list(plan)
    i, n = shard
    return list(plan[i::n])
