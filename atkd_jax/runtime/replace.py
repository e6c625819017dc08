"""Replaces a folder whole: at every moment the last good one, or the new one, is on the disk.

The new folder is built as a draft beside the old one, which steps aside by a rename before the
draft takes its name. What a killed process leaves behind is put in order by the next one
(`recover`), before it does anything that may fail.

The old folder may hold files of the user's. Only what the folder's own marker names is replaced or
removed; everything else moves into the new folder.
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
    """Where the next `folder` is built. A link stays a link, and renames stay on one disk."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.atkd-draft")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.atkd-old")


def check(folder: Path, names: Collection[str], own: Own) -> None:
    """Raises UserError if the entries `names` of a new folder would replace a user's."""
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
    """Takes back, or finishes, what a killed process began."""
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
    """Moves what is not ours from the old folder into the new one, and removes the rest."""
    ours = own(old)
    for path in sorted(old.iterdir()):
        if path.name not in ours:
            if (folder / path.name).exists():
                raise UserError(
                    f"{path} belongs into {folder}, which holds another {path.name}; move one away"
                )
            path.rename(folder / path.name)
    draft = draft_of(folder)  # all that is left is ours, and its new name says so
    old.rename(draft)
    shutil.rmtree(draft)


@contextlib.contextmanager
def replacing(folder: Path, own: Own) -> Iterator[Path]:
    """Yields an empty draft, which takes the folder's place at the end of a block without error.

    Raises:
      UserError: an entry of a user's has the name of a new one; the folder is as before.
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
