"""Types of command-line arguments: checked when they are parsed, before anything is written."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from atkd_jax.errors import UserError, check_known


def split(text: str, what: str, known: Iterable[str]) -> list[str]:
    """Names separated by commas.

    Raises:
      UserError: there is none, or one is not known.
    """
    found = list(filter(None, text.split(",")))
    for name in found:
        check_known(what, name, known)
    if not found:
        raise UserError(f"no {what} is named; choose from: {', '.join(known)}")
    return found


def names(what: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """Parses names separated by commas, at least one."""

    def parse(text: str) -> list[str]:
        try:
            return split(text, what, known)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def folder(text: str) -> Path:
    """An existing folder; `~` is the user's."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is no folder")
    return path


def writable(text: str) -> Path:
    """A folder that exists or can be made; nothing is made yet."""
    path = Path(text).expanduser()
    if re.match(r"\w+:/", text):
        raise argparse.ArgumentTypeError(f"{text} is a bucket; give a folder")
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{there} cannot be written")
    return path
