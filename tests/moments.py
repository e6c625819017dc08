"""Moments of a run at which a test kills, stops or signals it.

The process counts what it does and strikes itself, so that a moment is the same one on every
machine, however busy. Only `seconds` is the clock's, for the moments that nobody thought of.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


@dataclasses.dataclass(frozen=True)
class Moment:
    """The nth time that a process comes to `place`; counts from when it is called there.

    Args:
      place: "step" (before a call), "test" (in an evaluation), "file" (before anything is
        written, renamed or removed below `below`) or the name of one such operation.
      nth: from 1.
      below: names with this in their path count.
      seconds: to wait then, while the process goes on.
      number: the signal.
      host: of a job of several, the one that is struck.
    """

    place: str
    nth: int = 1
    below: str = ""
    seconds: float = 0.0
    number: int = signal.SIGKILL
    host: int = 0

    def __call__(self) -> None:
        if self.place in ("step", "test"):
            self._count_batches()
        else:
            self._count_operations()

    def _count_batches(self) -> None:
        from atkd_jax.training.loader import MemoryLoader

        name = {"step": "train", "test": "test"}[self.place]
        batches, arrived = getattr(MemoryLoader, name), self._counter()

        def counted(*args):
            for batch in batches(*args):
                arrived()
                yield batch

        setattr(MemoryLoader, name, counted)

    def _count_operations(self) -> None:
        operations = OPERATIONS if self.place == "file" else {self.place}
        arrived = self._counter()

        def hook(event, args):
            if event not in operations or self.below not in str(args[0]):
                return
            if event != "open" or set(str(args[1])) & set("wax+"):
                arrived()

        sys.addaudithook(hook)

    def _counter(self) -> Callable[[], None]:
        count = itertools.count(1)

        def arrived():
            if next(count) == self.nth and self._here():
                if self.seconds:
                    threading.Timer(self.seconds, self._strike).start()
                else:
                    self._strike()

        return arrived

    def _here(self) -> bool:
        import jax

        return jax.process_index() == self.host

    def _strike(self) -> None:
        print(self, flush=True)  # so that the test knows
        os.kill(os.getpid(), self.number)


def arm(*moments: Moment) -> None:
    """What `runs.start` is to call for several of them."""
    for moment in moments:
        moment()
