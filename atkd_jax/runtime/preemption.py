"""Preemption: SIGTERM and SIGINT end a run after a checkpoint, or at once between its stages."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from atkd_jax.runtime import hosts


class Interrupted(BaseException):
    """A signal asked the run to stop; everything is saved.

    Like KeyboardInterrupt not an Exception, so that handlers of a library's errors do not catch it.
    """


class StopSignal:
    """Whether a signal was received, and whether it may raise.

    Attributes:
      asked: a signal was received. It stays set until the outermost `stop_signal` ends, so that a
        signal in one stage of a run also stops the next.
      held: a signal waits for the next checkpoint instead of raising where it is received.
    """

    asked = False
    held = False

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """In its body, a signal only sets `asked`; the body saves and stops at its next chance."""
        before, self.held = self.held, True
        try:
            yield
        finally:
            self.held = before

    def check(self) -> None:
        """Raises Interrupted if a signal was received, except where other hosts have to agree."""
        if self.asked and not hosts.is_multi_host():
            raise Interrupted("between two checkpoints; what was saved before is kept")


_active: list[StopSignal] = []  # at most one


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Handles SIGTERM and SIGINT in its body; yields the StopSignal that they set.

    The first one raises Interrupted, unless it is held or other hosts have to agree; a SIGINT after
    any signal raises KeyboardInterrupt in any case. Nested calls yield the same value, so that a
    signal in one run also stops the next.
    """
    if _active:
        yield _active[0]
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
    _active.append(stop)
    try:
        yield stop
    finally:
        _active.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
