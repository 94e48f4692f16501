"""Where the batches of a stage come from: drawn anew for every step, or packed from one long stream."""

import random
import signal
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from training.context_parallel import cut
from training.distributed import World
from training.settings import StageConfig
from training.singles.named import AnySource
from training.stage import Stage

Batch = dict[str, Any]
WRONG = "wrong"  # of what stands for a batch that cannot be read: why


class Feed(Protocol):
    def steps(self, start: int, position: Any, world: World) -> Generator[Sequence[Batch]]:
        """This process's batches of every step from `start` on, without end or up to the stage's last. A batch that
        has a "position" begins there when it is the last of its step (see `packs`). Closed, it ends its workers."""
        ...


class Drawn:
    """One batch a step, drawn from the sources by weight: a pure function of the seed, the stage and the step, so that
    resuming needs no position."""

    def __init__(
        self, stage: Stage, config: StageConfig, sources: Mapping[str, AnySource], seed: int, workers: int
    ) -> None:
        self.batches = _Draws(stage, config, sources, seed)
        self.workers = workers

    def steps(self, start: int, position: Any, world: World) -> Generator[Sequence[Batch]]:
        if world.size > 1:
            raise ValueError(
                f"stage {self.batches.config.name!r} draws its batches anew and trains on one process only"
            )
        loader = DataLoader(
            self.batches, sampler=range(start, self.batches.config.steps), batch_size=None, **_workers(self.workers)
        )
        with closing(_read(loader)) as batches:
            for batch in batches:
                yield [batch]


class _Draws(Dataset[Batch]):
    def __init__(self, stage: Stage, config: StageConfig, sources: Mapping[str, AnySource], seed: int) -> None:
        self.stage, self.config, self.sources, self.seed = stage, config, sources, seed

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed} {self.config.name} {step}")
        names = rng.choices(list(self.config.data), list(self.config.data.values()), k=self.config.batch)
        try:
            return self.stage.collate([(name, self.sources[name].train(rng)) for name in names], rng)
        except ValueError as error:
            return {WRONG: str(error)}


class Stream(Protocol):
    def batches(self, position: Any = None, rank: int = 0, world: int = 1, packs_per_step: int = 1) -> Iterator[Batch]:
        """One process's packs of an endless sequence: pack i of a step goes to process i % world. Each carries the
        `position` from which the next step is read."""
        ...


class Packs:
    """`batch` packs a step, shared evenly by the processes: the same packs in every step however many there are.
    Processes that share their packs get a span of each."""

    def __init__(self, stream: Stream, batch: int, workers: int) -> None:
        self.stream, self.batch, self.workers = stream, batch, workers

    def steps(self, start: int, position: Any, world: World) -> Generator[Sequence[Batch]]:
        if self.batch % world.readers:
            who = f"{world.readers} processes" if world.context == 1 else f"{world.readers} groups of {world.context}"
            raise ValueError(f"{self.batch} packs a step cannot be shared evenly by {who}")
        each = self.batch // world.readers
        # Workers take turns with the packs of a step, so that a position is one of all of them.
        workers = max((n for n in range(1, self.workers + 1) if each % n == 0), default=0)
        share = _Share(self.stream, position, world, self.batch)
        with closing(_read(DataLoader(share, batch_size=None, **_workers(workers)))) as packs:
            while True:
                step = [next(packs) for _ in range(each)]
                if world.context > 1:
                    step = [cut(pack, world.rank % world.context, world.context) for pack in step]
                yield step


class _Share(IterableDataset[Batch]):
    """One process's packs, in order: its workers take turns as if each were a process of its own."""

    def __init__(self, stream: Stream, position: Any, world: World, packs: int) -> None:
        self.stream, self.position, self.rank, self.size, self.packs = (
            stream,
            position,
            world.reader,
            world.readers,
            packs,
        )

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank = self.rank + self.size * number
        try:
            yield from self.stream.batches(self.position, rank, self.size * workers, self.packs)
        except ValueError as error:
            yield {WRONG: str(error)}


def _read(loader: DataLoader[Batch]) -> Generator[Batch]:
    """The loader's batches. An error is raised as it was, not as its worker tells it, with a traceback for a message;
    and however this ends, the workers end with it: they do not listen to signals, and an exit would wait for them."""
    batches = iter(loader)
    try:
        for batch in batches:
            if WRONG in batch:
                raise ValueError(batch[WRONG])
            yield batch
    finally:
        workers = getattr(batches, "_workers", ())
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined] # left to itself it waits to be collected
        for worker in workers:
            worker.kill()


def _workers(count: int) -> dict[str, Any]:
    """A loader's arguments for so many workers, who share what is open by forking."""
    if not count or sys.platform != "linux":
        return {"num_workers": 0}
    return {
        "num_workers": count,
        "prefetch_factor": 4,
        "multiprocessing_context": "fork",
        "worker_init_fn": _leave_ending_to_the_parent,
    }


def _leave_ending_to_the_parent(_: int) -> None:
    """A machine that is taken away tells every process: the one that trains keeps its checkpoint and ends the rest."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
