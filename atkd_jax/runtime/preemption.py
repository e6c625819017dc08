"""SIGTERM and SIGINT end a run between two steps, after a checkpoint; or at once between stages."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax


class Interrupted(BaseException):
    """A signal asked the run to stop; what has to be saved is saved.

    As KeyboardInterrupt, no Exception: who handles any error of a library must not take it for one.
    """


class StopSignal:
    """Whether a signal came, and what it may do.

    Attributes:
      asked: a signal came. It stays set until whoever listened first is done, so that a stop asked
        for in one stage of a run ends the next.
      held: the signal has to wait for the next checkpoint instead of raising where it comes.
    """

    asked = False
    held = False

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, a signal only sets `asked`: the one inside saves and stops when it can."""
        before, self.held = self.held, True
        try:
            yield
        finally:
            self.held = before

    def check(self) -> None:
        """Raises Interrupted if a signal came. Of several hosts, one may not stop by itself."""
        alone = not jax.distributed.is_initialized() or jax.process_count() == 1
        if self.asked and alone:
            raise Interrupted("between two checkpoints; what was saved before is kept")


_listening: list[StopSignal] = []  # at most one


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Yields the value that signals set.

    The first SIGTERM or SIGINT raises Interrupted, unless it is held or other hosts have to agree;
    a SIGINT after any signal raises KeyboardInterrupt in any case. Who asks while somebody further
    out listens already gets the same value: a signal in one run stops the next one, too.
    """
    if _listening:
        yield _listening[0]
        return
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, frame):
        del frame
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True  # first: libraries may swallow what is raised in their callbacks
        if not stop.held:
            stop.check()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    _listening.append(stop)
    try:
        yield stop
    finally:
        _listening.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
