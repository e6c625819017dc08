"""Errors for the user: one line with what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user's; its message is one line with what is wrong and what to do.

    Raised before anything is half-written. Commands print it without a traceback; any other error
    is a bug in this package or in the user's own code, and keeps its traceback.
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
    """Escapes what is not printable, as in "a\\nb", so that the text is one line of valid UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def unwritable(path: Path, reason: str) -> OSError:
    """The error for a run's file or folder that cannot be written, as on a full disk."""
    return OSError(
        f"{path} cannot be written ({reason}); what was saved before is good. Make room, or mend"
        " the disk, and give the same command again"
    )
