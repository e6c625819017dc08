"""The files of a run beside its checkpoints and logs: config.json, summary.json, epochs/*.npz."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax.types import PyTree

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


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError if `workdir` holds a run with another configuration, or something else."""
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise ValueError(f"{workdir} holds checkpoints but no config.json; choose another")
        return
    ours, theirs = flat(config.to_dict()), flat(json.loads(path.read_text()))
    for key in sorted(ours.keys() | theirs.keys()):
        free = any(key == f or key.startswith(f + ".") for f in FREE)
        if not free and ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{workdir} holds a run with {key}={theirs.get(key)}, not {ours.get(key)};"
                " give the same configuration to go on with it, or another --workdir"
            )


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
