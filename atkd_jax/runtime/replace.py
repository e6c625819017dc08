"""Replaces a folder as a whole: at any time, the old one or the new one is complete on disk.

The new folder is built as a draft beside the old one, which is renamed before the draft takes its
name. The next process cleans up what a killed one leaves behind (`recover`) before it does anything
that may fail.

The old folder may contain files of the user. Only entries that the folder's own marker names are
replaced or removed; all others move into the new folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from atkd_jax.errors import UserError

# Folder -> names of those of its entries that this program has written.
Own = Callable[[Path], Collection[str]]


def draft_of(folder: Path) -> Path:
    """Where the next `folder` is built: beside the target of a link, so that renames work."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.atkd-draft")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.atkd-old")


def check(folder: Path, names: Collection[str], own: Own) -> None:
    """Raises UserError if the entries `names` of a new folder would replace a user's files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file where a folder is to be written; move it away")
    ours = own(folder)
    for path in sorted(folder.iterdir()):
        if path.name in names and path.name not in ours:
            raise UserError(
                f"{path} is in the way: it is not from an earlier run and is not replaced; move it"
                " away"
            )


def recover(folder: Path, own: Own) -> None:
    """Undoes or finishes the replacement that a killed process began."""
    folder = folder.resolve()
    draft, old = draft_of(folder), _old(folder)
    if draft.exists():
        shutil.rmtree(draft)
    if old.exists():
        if folder.exists():
            _retire(old, folder, own)
        else:
            old.rename(folder)


def _retire(old: Path, folder: Path, own: Own) -> None:
    """Moves the user's files from the old folder into the new one, and removes the rest."""
    ours = own(old)
    for path in sorted(old.iterdir()):
        if path.name not in ours:
            if (folder / path.name).exists():
                raise UserError(
                    f"{path} belongs into {folder}, which holds another {path.name}; move one away"
                )
            path.rename(folder / path.name)
    draft = draft_of(folder)  # only our entries are left; under this name `recover` removes them
    old.rename(draft)
    shutil.rmtree(draft)


@contextlib.contextmanager
def replacing(folder: Path, own: Own) -> Iterator[Path]:
    """Yields an empty draft, which replaces the folder when the body ends without an error.

    Raises:
      UserError: a new entry would replace a user's file; the folder is unchanged.
    """
    recover(folder, own)
    folder = folder.resolve()
    draft = draft_of(folder)
    draft.mkdir(parents=True)
    try:
        yield draft
        check(folder, [path.name for path in draft.iterdir()], own)
        if folder.exists():
            folder.rename(_old(folder))
        draft.rename(folder)
        if _old(folder).exists():
            _retire(_old(folder), folder, own)
    except BaseException:
        with contextlib.suppress(OSError):
            recover(folder, own)
        raise
