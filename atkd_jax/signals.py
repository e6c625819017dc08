"""SIGTERM and SIGINT end a run between two steps, after a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):
    """A signal asked the run to stop; it is saved."""


class StopSignal:
    asked = False


_listening: list[StopSignal] = []  # at most one


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Yields a value whose `asked` becomes true when a signal comes; a second SIGINT kills.

    Who asks while somebody further out listens already gets the same value: a signal that came
    between two runs stops the next one.
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
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    _listening.append(stop)
    try:
        yield stop
    finally:
        _listening.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
