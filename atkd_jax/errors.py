"""Errors a person can act on, in one line: what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake in what was asked for: one line that says what is wrong and what to do.

    Raised on purpose, before anything is half-written. Commands print it without a traceback; any
    other error is a bug of this package or of a user's own code, and keeps its traceback.
    """


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raises UserError naming the nearest match if `name` is not among `known`."""
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"
    raise UserError(f"unknown {what} {name!r}; {hint}")


def printable(text: str) -> str:
    """The text in one line of valid UTF-8: what is neither becomes an escape, as in "a\\nb"."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def unwritable(path: Path, reason: str) -> OSError:
    """The error for a file or folder of a run on a disk that is full or gone."""
    return OSError(
        f"{path} cannot be written ({reason}); what was saved before is good. Make room, or mend"
        " the disk, and give the same command again"
    )
