"""What the commands here have in common: checked flags, and mistakes that end in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from atkd_jax.errors import check_known
from atkd_jax.main import on_purpose
from atkd_jax.runtime.preemption import Interrupted, stop_signal


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with a flag in one line, without the usage."""

    def __init__(self, doc: str):
        super().__init__(description=doc.splitlines()[0], allow_abbrev=False)

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}\n")


def number(low: float, high: float, kind: type = int) -> Callable[[str], float]:
    """Reads a number within a range, which NaN is not."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        whole = "whole " if kind is int else ""
        raise argparse.ArgumentTypeError(f"{text!r} is no {whole}number from {low:g} to {high:g}")

    return read


def split(text: str, what: str, known: Iterable[str]) -> list[str]:
    """Names between commas; ValueError if there is none, or one is not known."""
    found = list(filter(None, text.split(",")))
    for name in found:
        check_known(what, name, known)
    if not found:
        raise ValueError(f"no {what} is named; choose from: {', '.join(known)}")
    return found


def names(what: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads names between commas, at least one."""

    def read(text: str) -> list[str]:
        try:
            return split(text, what, known)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def folder(text: str) -> Path:
    """A folder that is there; `~` is the user's."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no folder")
    return path


def place(text: str) -> Path:
    """A folder to read from, which need not be there; `~` is the user's."""
    path = Path(text).expanduser()
    return folder(text) if os.path.lexists(path) else path


def file(text: str) -> Path:
    """A file that is there; `~` is the user's."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is no file")
    return path


def writable(text: str) -> Path:
    """A folder that is there or can be made; nothing is made yet."""
    path = Path(text).expanduser()
    if re.match(r"\w+:/", text):
        raise argparse.ArgumentTypeError(f"{text} is a bucket; give a folder")
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there} cannot be written")
    return path


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Ends the command in one line where it is stopped, or an error tells what to do."""
    try:
        with stop_signal():  # between its trainings, too
            yield
    except Interrupted as stopped:
        print(f"stopped: {stopped}; the same command goes on from there")
        sys.exit(0)
    except KeyboardInterrupt:  # asked for twice
        sys.exit("stopped at once; the same command goes on from the last checkpoint")
    except Exception as error:
        if on_purpose(error):
            sys.exit(f"error: {error}")
        raise
