"""Checks everything a run needs before it starts: one line each, exit code 1 if one is wrong.

python -m atkd_jax.doctor --config=configs/imagenet.py --workdir=DIR

Run it on every host with the flags of the run: the hosts must reach each other, have the same
versions, read the same data and write to the same workdir. Nothing is downloaded or left behind.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import app
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from atkd_jax.command_line import entry_point
from atkd_jax.errors import UserError
from atkd_jax.main import (
    ADDRESS,
    CONFIG,
    PROCESS,
    PROCESSES,
    WORKDIR,
    check_arguments,
    parse_flags,
)
from atkd_jax.nn import native
from atkd_jax.runtime import hosts, run_files
from atkd_jax.runtime.lock import missing, remove_empty
from atkd_jax.training import dry_run, from_config
from atkd_jax.training.teachers import read_facts

MIB = 2**20


def versions() -> str:
    """Checks that the versions of packages are the same on every host."""
    found = run_files.versions()
    hosts.assert_equal_across_hosts(
        json.dumps(found), "the hosts have different versions of these packages"
    )
    return ", ".join(f"{package} {version}" for package, version in found.items())


def devices() -> str:
    """Checks that every host has the same number of devices."""
    counts = multihost_utils.process_allgather(np.int32(jax.local_device_count())).ravel()
    if len(set(counts.tolist())) > 1:
        raise UserError(f"the hosts have different numbers of devices: {counts.tolist()}")
    text = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {counts[0]} on every host"
    if jax.default_backend() == "cpu":
        text += f", {native.describe()}"
    return text


def connection() -> str:
    """Checks that every host receives from every other."""
    heard = multihost_utils.process_allgather(np.int32(jax.process_index())).ravel()
    if sorted(heard.tolist()) != list(range(jax.process_count())):
        raise UserError(f"of {jax.process_count()} hosts only {sorted(heard.tolist())} answer")
    return f"all {jax.process_count()} see each other" if len(heard) > 1 else "one, alone"


def data_set(config: ConfigDict) -> str:
    """Checks that every file exists; decodes no image, downloads nothing."""
    return from_config.dataset(config).check(config.data.data_dir or None)


def teacher(config: ConfigDict) -> str:
    """Checks that the teacher's weights exist."""
    if not config.terms:
        return "not needed"
    read_facts(config)
    if not config.teacher.weights:
        return f"{config.teacher.model}, trained first: no weights are given"
    return f"{config.teacher.model}, {config.teacher.weights}"


def writable(config: ConfigDict | None, workdir: Path) -> str:
    """Checks that a run there can be resumed, and that all hosts see what each of them writes."""
    if config is not None:
        run_files.check_equal_configs(config)
    unfit = None
    try:
        run_files.check_workdir(config, workdir)
        run_files.read_summary(workdir)
    except (UserError, OSError) as found:
        unfit = found
    if not multihost_utils.process_allgather(np.bool_(unfit is None)).all():
        raise unfit or UserError(f"{workdir} can be used here, and not on another host")
    mark = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    notes = [workdir / f".doctor-{mark:08x}-{i}" for i in range(jax.process_count())]
    error, seen, made = None, [], []
    try:
        made = missing(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        notes[jax.process_index()].open("x").close()  # never overwrites a user's file
    except OSError as found:
        error = found
    multihost_utils.sync_global_devices("doctor wrote")
    if error is None:
        seen = [i for i, note in enumerate(notes) if note.exists()]
    multihost_utils.sync_global_devices("doctor looked")
    if error is None:
        notes[jax.process_index()].unlink()
    multihost_utils.sync_global_devices("doctor left")
    remove_empty(made)
    if error is not None:
        raise UserError(f"{workdir} cannot be written: {error.strerror}")
    if len(seen) < jax.process_count():
        raise UserError(f"{workdir} is not the same folder on all hosts: seen here are {seen}")
    return f"{workdir}, writable by all"


def space(config: ConfigDict | None, workdir: Path) -> str:
    """Checks the disk space for the kept checkpoints, one being written, and the export."""
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:,.1f} GiB free"
    if config is None:
        return text
    needed = (config.checkpoint.keep + 2) * dry_run.state_bytes(dry_run.make_plan(config).setup)
    if free < needed:
        raise UserError(f"{text}, a run needs {needed / 2**30:,.1f} GiB")
    return f"{text}, {needed / MIB:,.0f} MiB needed"


def look(name: str, check: Callable[[], str]) -> bool:
    """Runs a check and prints its line; returns whether it passed on all hosts.

    Every host prints its own failure.
    """
    try:
        text, good = check(), True
    except (UserError, OSError, RuntimeError) as error:  # RuntimeError: of JAX's devices
        text, good = " ".join(str(error).split()), False
    everyone = multihost_utils.process_allgather(np.bool_(good)).all()
    if not good:
        host = f" (host {jax.process_index()})" if jax.process_count() > 1 else ""
        print(f"WRONG {name}{host}: {text}", flush=True)
    elif everyone:
        hosts.log_once(f"ok    {name}: {text}")
    return bool(everyone)


def examine(config: ConfigDict | None, workdir: Path | None) -> bool:
    """Runs every check that is possible; True if all pass.

    The disk space that a run needs depends on its data. It is checked only if they are in order and
    the workdir can be used.
    """
    checks = [("versions", versions), ("devices", devices), ("hosts", connection)]
    if config is not None:
        checks += [("data", lambda: data_set(config)), ("teacher", lambda: teacher(config))]
    if workdir is not None:
        checks += [("workdir", lambda: writable(config, workdir))]
        checks += [("space", lambda: space(config, workdir))]
    found: dict[str, bool] = {}
    for name, check in checks:
        if name != "space" or (found.get("data", True) and found["workdir"]):
            found[name] = look(name, check)
    return all(found.values())


def main(argv: list[str]) -> None:
    check_arguments(argv)
    with entry_point("stopped"):
        try:
            hosts.connect(ADDRESS.value, PROCESSES.value, PROCESS.value)
        except (UserError, RuntimeError) as error:
            sys.exit(f"WRONG hosts: {error}")
        workdir = Path(WORKDIR.value) if WORKDIR.value else None
        sys.exit(not examine(CONFIG.value, workdir))


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    app.run(main, flags_parser=parse_flags)
