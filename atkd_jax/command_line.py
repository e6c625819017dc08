"""How every command starts and ends: its flags, the lines on its terminal, and its exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import absl.logging

from atkd_jax.cache import enable_compilation_cache
from atkd_jax.errors import UserError
from atkd_jax.runtime import hosts
from atkd_jax.runtime.preemption import Interrupted

# Errors whose message is enough; anything else is a bug, whose traceback is printed.
MISTAKES = (UserError, OSError, FloatingPointError)


@contextlib.contextmanager
def entry_point(
    interrupted: str = "stopped at once; the same command goes on from the last checkpoint",
) -> Iterator[None]:
    """Runs the body of a command.

    Mistakes (UserError), disk errors and numbers that are not finite end it with one line on
    stderr, `error: ...`, and exit code 1. Any other exception is a bug and keeps its traceback. A
    run that is stopped by a signal (Interrupted) ends with exit code 0.

    A failed command ends at once (`hosts.abort`): a normal exit would wait for threads of Orbax,
    which never end after a disk error, and for other hosts.

    Warnings of this package go to stderr as `warning: ...`; other libraries log errors only.
    Compiled programs are kept on disk.

    Args:
      interrupted: the line to end with after Ctrl-C.
    """
    try:
        with _logging():
            enable_compilation_cache()
            yield
    except Interrupted as stopped:
        hosts.log_once(f"stopped: {stopped}; the same command goes on from there")
        sys.exit(0)
    except KeyboardInterrupt:
        hosts.abort(interrupted)
    except MISTAKES as error:
        hosts.abort(f"error: {error}")
    except Exception:
        if hosts.is_multi_host():
            hosts.abort(traceback.format_exc())
        raise


def usage_error(message: str) -> NoReturn:
    """Ends a command whose command line is wrong: one line on stderr, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Prints a mistake in the flags as one line, without the usage.

    Args:
      doc: the command's module docstring, which `--help` shows.
    """

    def __init__(self, doc: str):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        usage_error(message)


def number(low: float, high: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`, NaN is rejected."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        whole = "whole " if kind is int else ""
        raise argparse.ArgumentTypeError(f"{text!r} is no {whole}number from {low:g} to {high:g}")

    return read


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax logs every file
    ours, handler = logging.getLogger("atkd_jax"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    ours.addHandler(handler)
    # The root logger's handler would print the line again, in a form of its own.
    ours.propagate, before = False, ours.propagate
    try:
        yield
    finally:
        ours.propagate = before
        ours.removeHandler(handler)
