"""The files of a run beside its checkpoints and logs: config.json, summary.json, epochs/*.npz.

One run owns the folder, by a lock that the system drops when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import hosts
from atkd_jax.errors import unwritable
from atkd_jax.types import PyTree

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

LOCK = "lock"
# What may differ when a run is taken up again: where it runs, not what it computes.
FREE = (
    "parallel",
    "dry_run",
    "steps_per_dispatch",
    "checkpoint",
    "data.data_dir",
    "teacher.expect_top1",
)
PACKAGES = ("atkd-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, values as JSON would give them back."""
    pairs = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = json.loads(json.dumps(value))
    return pairs


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """What may not differ."""
    return {
        key: value
        for key, value in flat(config).items()
        if value != {} and not any(key == free or key.startswith(free + ".") for free in FREE)
    }


def check_folder(workdir: Path) -> None:
    """Raises ValueError if `workdir` is the address of a bucket."""
    if re.match(r"\w+:/", str(workdir)):  # Path has made one slash of two
        raise ValueError(
            f"--workdir {workdir} is a bucket; it has to be a folder that all hosts see, such as a"
            " network disk (data may lie in a bucket)"
        )


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError if `workdir` holds a run with another configuration, or something else.

    Or if the hosts of the job were not started with the same configuration.
    """
    check_folder(workdir)
    ours = _fixed(config.to_dict())
    hosts.check_same(
        json.dumps(ours, sort_keys=True),
        "the hosts were started with different configurations; type the same command on all",
    )
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise ValueError(f"{workdir} holds checkpoints but no config.json; choose another")
        return
    theirs = _fixed(json.loads(path.read_text()))
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs and not ours[key]:  # newer than that run, and off
            continue
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{workdir} holds a run with {key}={theirs.get(key)}, not {ours.get(key)};"
                " give the same configuration to go on with it, or another --workdir"
            )


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """Makes `workdir` and keeps other jobs out of it. Leaves no trace if nothing was written.

    Where the file system knows no locks, it says so and lets the run go on.

    Raises:
      ValueError: it cannot be written, or another process is at work in it.
    """
    if jax.process_index() != 0:
        yield
        return
    path = workdir / LOCK
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ValueError(f"--workdir {workdir} cannot be written: {error.strerror}") from None
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{workdir} is in use by {path.read_text() or 'another process'}; wait for it, stop"
                " it, or give another --workdir"
            ) from None
        except OSError as error:  # some network disks know no locks
            hosts.say(
                f"{workdir} cannot be locked here ({error.strerror}): nothing keeps a second"
                " process out of it"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if [found.name for found in workdir.iterdir()] == [LOCK]:
                path.unlink()
                workdir.rmdir()


@contextlib.contextmanager
def disk_errors(workdir: Path) -> Iterator[None]:
    """Says what to do when the disk is full, whatever is being written: a log, a picture, ..."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise unwritable(workdir, error.strerror) from error


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the new one. Host 0 only."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(draft, path)


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """summary.json of a finished run; None while it is not finished."""
    path = workdir / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_arrays(workdir: Path, epoch: int, means: PyTree) -> None:
    """Metrics that are arrays (RTK's attention matrix), averaged over an epoch, as one npz."""
    arrays = {key.replace("/", "."): value for key, value in means.items() if np.ndim(value)}
    if arrays and jax.process_index() == 0:
        (workdir / "epochs").mkdir(exist_ok=True)
        np.savez(workdir / "epochs" / f"{epoch + 1:04d}.npz", **arrays)


def versions() -> dict[str, str]:
    """Of Python and of the packages that a number may depend on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
    }
