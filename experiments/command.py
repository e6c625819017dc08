"""What the commands here have in common: checked flags, and mistakes that end in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from atkd_jax.command_line import entry_point
from atkd_jax.errors import check_known
from atkd_jax.runtime.preemption import stop_signal


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
    """`entry_point` of a command that stops at a signal, also between its trainings."""
    with entry_point(), stop_signal():
        yield
