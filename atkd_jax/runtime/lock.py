"""Locks a run's folder for one process; the system releases the lock when the process ends."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from atkd_jax.errors import UserError
from atkd_jax.runtime import hosts

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
OWNER = re.compile(r"process \d+ on \S+")


def _open(path: Path, mode: str) -> IO[str]:
    """Opens a lock without following a link or waiting for a pipe.

    Raises:
      UserError: it is no file, or a file of another kind.
      OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT if mode == "r+" else os.O_RDONLY
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    complaint = UserError(
        f"{path} is not the lock of a run, and a run needs that name; give another --workdir"
    )
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise complaint from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise complaint
    file = os.fdopen(descriptor, mode, errors="replace")
    text = file.read(1000)
    if text and not OWNER.fullmatch(text):
        file.close()
        raise complaint
    return file


def is_there(workdir: Path) -> bool:
    """Whether `workdir` contains the lock of a run, active or not.

    Raises:
      UserError: something else has the lock's name.
    """
    if not os.path.lexists(workdir / LOCK):
        return False
    with _open(workdir / LOCK, "r") as file:
        file.seek(0)
        return bool(file.read(1))


def missing(folder: Path) -> list[Path]:
    """`folder` and those of its parents that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Removes those of the folders that are empty."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Creates `workdir` and keeps other jobs out of it. Leaves no trace if nothing was written.

    If the file system does not support locks, this prints a line and goes on without one.

    Raises:
      UserError: the folder cannot be written, or another process uses it.
    """
    if jax.process_index() != 0:
        yield
        return
    made = missing(workdir)
    before = set() if made else set(os.listdir(workdir))
    try:
        try:
            file = _open_and_lock(workdir)
        except OSError as error:
            raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from None
        with file:
            try:
                file.seek(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.truncate()
                file.flush()
                yield
            finally:
                _remove_if_unused(workdir, before)
    finally:
        remove_empty(made)


def _remove_if_unused(workdir: Path, before: set[str]) -> None:
    """Removes the lock if nothing was written, so that the folder does not pass for a run's."""
    with contextlib.suppress(OSError):
        unchanged = set(os.listdir(workdir)) == before | {LOCK}
        if unchanged and (LOCK not in before or before == {LOCK}):
            (workdir / LOCK).unlink()


def _open_and_lock(workdir: Path) -> IO[str]:
    """Opens and locks the lock's file, again if another process has removed it meanwhile."""
    path = workdir / LOCK
    while True:
        workdir.mkdir(parents=True, exist_ok=True)
        file = _open(path, "r+")
        try:
            _lock(file, workdir)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[str], workdir: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{workdir} is in use by {file.read() or 'another process'}; wait for it, stop it, or"
            " give another --workdir"
        ) from None
    except OSError as error:  # some network disks know no locks
        hosts.log_once(
            f"{workdir} cannot be locked here ({error.strerror}): nothing keeps a second process"
            " out of it"
        )
