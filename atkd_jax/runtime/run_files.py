"""A run's files besides checkpoints and logs: config.json, summary.json, epochs/*.npz."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax.errors import UserError, unwritable
from atkd_jax.runtime import checkpoint, hosts, json_file, lock, replace
from atkd_jax.types import PyTree

# The entries that a run writes.
WRITTEN = (
    "attention.png",
    "checkpoints",
    "config.draft",
    "config.json",
    "epochs",
    "export",
    "metrics.draft",
    "metrics.jsonl",
    "summary.draft",
    "summary.json",
    "teacher",
    "tensorboard",
)
# Keys that may change on resume: where a run executes, not what it computes.
RESUME_MAY_CHANGE = (
    "parallel",
    "dry_run",
    "topology",
    "steps_per_dispatch",
    "test_every_epochs",
    "checkpoint",
    "data.data_dir",
    "teacher.expect_top1",
)
PACKAGES = ("atkd-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, with values as a JSON round trip returns them."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = json.loads(json.dumps(value))
    return pairs


def fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that may not change on resume: {"a.b": value}."""
    return {
        key: value
        for key, value in flat(config).items()
        if value != {}
        and not any(key == free or key.startswith(free + ".") for free in RESUME_MAY_CHANGE)
    }


def expand(path: str) -> str:
    """Expands ~ in a path, which shells do not do after an equals sign.

    Raises:
      UserError: there is no such user.
    """
    full = os.path.expanduser(path)
    if full.startswith("~"):
        raise UserError(f"{path}: there is no user {path.split('/')[0][1:]!r}")
    return full


def expand_paths(config: ConfigDict) -> None:
    """Expands ~ in the paths of a configuration."""
    config.data.data_dir = expand(config.data.data_dir)
    config.teacher.weights = expand(config.teacher.weights)
    kind, colon, path = config.data.name.partition(":")
    if kind in ("npz", "folder"):
        config.data.name = kind + colon + expand(path)


def check_folder(workdir: Path) -> None:
    """Raises UserError if `workdir` is a bucket's address or a file."""
    if re.match(r"\w\w+:/", str(workdir)):  # Path has made one slash of two
        address = str(workdir).replace(":/", "://", 1)
        raise UserError(
            f"--workdir {address} is a bucket; it has to be a folder that all hosts see, such as a"
            " network disk (data may lie in a bucket)"
        )
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder")


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if `workdir` contains a run with another configuration, or other files.

    Also if the hosts of the job were started with different configurations.
    """
    check_equal_configs(config)
    check_workdir(config, workdir)


def check_equal_configs(config: ConfigDict) -> None:
    """Raises UserError on all hosts unless all were started with the same configuration."""
    hosts.assert_equal_across_hosts(
        json.dumps(fixed(config.to_dict()), sort_keys=True),
        "the hosts were started with different configurations; type the same command on all",
    )


def check_workdir(config: ConfigDict | None, workdir: Path) -> None:
    """The part of `check` that involves this host only."""
    check_folder(workdir)
    if config is None:
        return
    ours = fixed(config.to_dict())
    stored = read_config(workdir)
    if not lock.is_there(workdir) and stored is None:
        check_unwritten(workdir)
        return
    if not (workdir / "summary.json").exists():
        replace.check(workdir / "export", checkpoint.EXPORTED, checkpoint.exported)
    if stored is None:
        if (workdir / "checkpoints").exists():
            raise UserError(f"{workdir} holds checkpoints but no config.json; choose another")
        return
    theirs = fixed(stored)
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs and not ours[key]:  # added after that run, and off
            continue
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{workdir} holds a run with {key}={theirs.get(key)}, not {ours.get(key)};"
                " give the same configuration to go on with it, or another --workdir"
            )


def check_unwritten(workdir: Path) -> None:
    """Raises UserError if a folder that belongs to no run has an entry that a run would write."""
    for name in WRITTEN:
        if name == "teacher" and _is_run(workdir / name):
            continue  # which the run resumes
        if os.path.lexists(workdir / name):
            raise UserError(
                f"{workdir / name} is not from a run and would be overwritten; give another"
                " --workdir"
            )


def _is_run(folder: Path) -> bool:
    try:
        return read_config(folder) is not None
    except UserError:
        return False


@contextlib.contextmanager
def disk_errors(workdir: Path) -> Iterator[None]:
    """Turns the OSError of a full disk, whatever was being written, into one with advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise unwritable(workdir, error.strerror or str(error)) from error


def write_json(path: Path, value: object) -> None:
    """Writes atomically, so that a reader sees the old file or the new one. Host 0 only."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(draft, path)


def _read(
    path: Path, what: str, advice: str, checks: Mapping[str, json_file.Check]
) -> dict[str, Any] | None:
    return json_file.read(path, what, advice, checks) if os.path.lexists(path) else None


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Reads config.json; None if there is none.

    Raises:
      UserError: it is not the configuration of a run.
    """
    checks = {"student": json_file.is_text, "data.name": json_file.is_text}
    return _read(
        workdir / "config.json",
        "the configuration of a run",
        "put the run's own back, or give another --workdir",
        checks | {"epochs": json_file.is_count},
    )


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """Reads summary.json; None while the run is not finished.

    Raises:
      UserError: it is not the summary of a run.
    """
    number = json_file.is_number
    return _read(
        workdir / "summary.json",
        "the summary of a run",
        "move it away and give the run's command again, which writes it anew from the last"
        " checkpoint",
        {"last.top1": number, "best.top1": number, "seconds": number}
        | {key: json_file.is_object for key in ("config", "student", "versions")},
    )


def write_arrays(workdir: Path, epoch: int, means: PyTree) -> None:
    """Writes metrics that are arrays (RTK's attention matrix), averaged over an epoch, as npz."""
    arrays = {key.replace("/", "."): value for key, value in means.items() if np.ndim(value)}
    if arrays and jax.process_index() == 0:
        (workdir / "epochs").mkdir(exist_ok=True)
        np.savez(workdir / "epochs" / f"{epoch + 1:04d}.npz", **arrays)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The devices and processors of the run."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
    }
