"""Between a stream and the training loop: keep the device fed, and know when it is not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def prefetch(batches: Iterable[T], put: Callable[[T], U], size: int = 2) -> Iterator[U]:
    """Yields `put(batch)` of every batch, starting the transfers of `size` more ahead of time.

    `put` has to return before the copy is done, as `jax.device_put` does.
    """
    ahead: deque[U] = deque()
    for batch in batches:
        ahead.append(put(batch))
        if len(ahead) > size:
            yield ahead.popleft()
    yield from ahead


class DataWait:
    """The share of a loop's time that it waits for data.

        wait = DataWait()
        for batch in wait.timed(batches): ...
        wait.share, wait.hint()

    Args:
      clock: seconds.
      limit: the share above which there is a hint.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, limit: float = 0.1):
        self.clock, self.limit = clock, limit
        self.waited = self.total = 0.0
        self.hinted = False

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches. What passes until one is there is waiting, the rest is work."""
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
        """0..1, over everything timed so far."""
        return self.waited / self.total if self.total else 0.0

    def hint(self) -> str | None:
        """One line the first time the share is over the limit, else None."""
        if self.hinted or self.share <= self.limit:
            return None
        self.hinted = True
        return (
            f"{self.share:.0%} of the time goes into waiting for data: read from a faster disk,"
            " use a machine with more CPU cores or more hosts, or store smaller images"
        )
