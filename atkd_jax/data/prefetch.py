"""Prefetching of batches to the device, and a measure of the time spent waiting for data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def prefetch(batches: Iterable[T], put: Callable[[T], U], size: int = 2) -> Iterator[U]:
    """Yields `put(batch)` for every batch, with the transfers of `size` more started in advance.

    `put` must return before the copy is complete, as `jax.device_put` does.
    """
    ahead: deque[U] = deque()
    for batch in batches:
        ahead.append(put(batch))
        if len(ahead) > size:
            yield ahead.popleft()
    yield from ahead


class DataWait:
    """The share of its time that a loop waits for data.

        wait = DataWait()
        for batch in wait.timed(batches): ...
        wait.share, wait.hint()

    Args:
      clock: returns seconds.
      limit: the share above which there is a hint.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, limit: float = 0.1):
        self.clock, self.limit = clock, limit
        self.waited = self.total = 0.0
        self.hinted = False

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the same batches. The time until a batch arrives is waiting, the rest is work."""
        batches = iter(batches)
        while True:
            asked = self.clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += self.clock() - asked
            yield batch
            self.total += self.clock() - asked

    @property
    def share(self) -> float:
        """Waiting time over total time so far, 0..1."""
        return self.waited / self.total if self.total else 0.0

    def hint(self) -> str | None:
        """A hint for the log when the share first exceeds the limit, else None."""
        if self.hinted or self.share <= self.limit:
            return None
        self.hinted = True
        return (
            f"{self.share:.0%} of the time goes into waiting for data: read from a faster disk,"
            " use a machine with more CPU cores or more hosts, or store smaller images"
        )
