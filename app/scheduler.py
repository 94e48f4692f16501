"""Who gets a slot, and who reads how much in a turn. Knows nothing of models."""

import time
from collections import deque
from collections.abc import Callable

from app.row import Row


class Scheduler:
    """Rows wait in order of arrival for one of `slots`; those that have one read in turns, and write when they have
    read. `waiting` is bounded by the engine."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting: deque[Row] = deque()
        self.reading: deque[Row] = deque()
        self.writing: list[Row] = []
        self._free = list(range(slots))
        self._pace = 0.0  # seconds between two rows that end, smoothed
        self._last_end: float | None = None

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def rows(self) -> list[Row]:
        return [*self.waiting, *self.reading, *self.writing]

    def admit(self) -> list[Row]:
        """Give the free slots to those who have waited longest."""
        admitted = []
        while self.waiting and self._free:
            row = self.waiting.popleft()
            row.slot = self._free.pop()
            self.reading.append(row)
            admitted.append(row)
        return admitted

    def remove(self, row: Row) -> None:
        """Forget a row; its slot is free."""
        for place in (self.waiting, self.reading, self.writing):
            if row in place:
                place.remove(row)
        if row.slot >= 0:
            self._free.append(row.slot)
            row.slot = -1
            now = time.perf_counter()
            if self._last_end is not None:
                gap = min(now - self._last_end, 60.0)
                self._pace = gap if not self._pace else 0.9 * self._pace + 0.1 * gap
            self._last_end = now

    def write(self, row: Row) -> None:
        """The row has read its prompt."""
        self.reading.remove(row)
        self.writing.append(row)

    def portion(self, budget: int) -> list[tuple[Row, int]]:
        """Who reads in this turn, and how many ids: at most `budget`, padding included, and at least half of them no
        padding. Who reads goes to the end of the line, so that a long text does not hold up a short one."""
        taken: list[tuple[Row, int]] = []
        longest = total = 0
        for row in self.reading:
            if (count := min(row.readable(), budget)) <= 0:
                continue
            padded = (len(taken) + 1) * max(longest, count)
            if taken and (padded > budget or 2 * (total + count) < padded):
                continue
            taken.append((row, count))
            longest, total = max(longest, count), total + count
        for row, _ in taken:
            self.reading.remove(row)
            self.reading.append(row)
        return taken

    def retry_after(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds until a place in the line may be free, from how often rows have ended of late."""
        pace = self._pace
        if self._last_end is not None:
            pace = max(pace, min(clock() - self._last_end, 60.0) / (len(self.waiting) + 1))
        return max(1.0, pace * (len(self.waiting) + 1 - len(self._free)))
