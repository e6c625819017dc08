"""Fills tables: a queue of runs that survives anything.

    python -m experiments.run --table=rtk_table1 --datasets=cifar10 --seeds=3 --protocol=paper \
      --budget=570 [--methods=kd,rtk] [--weights=FOLDER] [--students=4] [--devices=8]

A run is named by the hash of its configuration (runs.py). Finished ones have a line in
experiments/results/ and are skipped; a broken one goes on from its checkpoint; when the budget is
over, the run of the moment is saved and the same command goes on with it. A run is locked while
someone works on it, so several of these may share a queue: `--devices=N` starts N, one per device.

`--students=K` trains K methods of the same pair and seed in one program that asks the teacher once
per batch (company.py). Stopped, it goes on with the same K only: keep the flags.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from atkd_jax.errors import check_known
from atkd_jax.runtime.cache import enable_compilation_cache
from atkd_jax.runtime.preemption import Interrupted, StopSignal, stop_signal
from experiments import command, ledger, runs
from experiments.runs import Run
from experiments.tables import TABLES, Row
from experiments.worker import Worker, say


def queue(rows: list[Row], protocol: str, seeds: int) -> list[Run]:
    """What has to run, every run once: the first seed of all rows, then the second, ..."""
    found = {}
    for seed in range(seeds):
        for row in rows:
            run = runs.resolve(row.config, row.role, protocol, seed)
            found.setdefault(run.hash, run)
    return list(found.values())


def groups(todo: list[Run], students: int) -> list[list[Run]]:
    """Up to `students` neighbours in the queue that share everything but their methods."""
    waiting: dict[str, list[Run]] = {}
    for run in todo:
        key = runs.group_of(run) if run.config.terms else run.hash
        waiting.setdefault(key, []).append(run)
    return [
        members[i : i + students]
        for members in waiting.values()
        for i in range(0, len(members), students)
    ]


@contextlib.contextmanager
def budget(seconds: float) -> Iterator[StopSignal]:
    """Asks everybody who listens to stop when the time is over; 0: never."""
    with stop_signal() as stop:
        before = signal.signal(signal.SIGALRM, lambda *_: setattr(stop, "asked", True))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield stop
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def fill(worker: Worker, todo: list[list[Run]], stop: StopSignal) -> list[str]:
    """Works through the queue until a signal comes; what failed, in words."""
    failed = []
    with contextlib.suppress(Interrupted):
        for group in todo:
            if stop.asked:
                break
            try:
                worker.work(group)
            except Interrupted:
                raise
            except Exception as error:  # whatever it is, the rest of the queue goes on
                told = f"{group[0].text} seed {group[0].seed}: {describe(error)}"
                log = worker.folder(group[0]).with_suffix(".log")
                with contextlib.suppress(OSError), log.open("a") as file:  # or the disk is full
                    traceback.print_exc(file=file)
                    told += f" (see {log})"
                alone = isinstance(error, FloatingPointError) or worker.trained(group)
                if alone and len(group) > 1:
                    say(f"{told}; its company goes on one by one")
                    failed += fill(worker, [[run] for run in group], stop)
                else:
                    say(f"error: {told}")
                    failed.append(told)
    return failed


def describe(error: Exception) -> str:
    """In one line; the log has the rest."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return line
    return f"{type(error).__name__}: {line}".removesuffix(": ")


def spread(devices: int) -> int:
    """Starts this command once per device, hands signals on, and waits."""
    command = [sys.executable, "-m", "experiments.run", *sys.argv[1:], "--devices=1"]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = given.split(",") if given else [str(i) for i in range(devices)]
    if devices > len(gpus):
        sys.exit(f"error: --devices={devices}, but CUDA_VISIBLE_DEVICES is {given}")
    children = []
    for i in range(devices):
        only = {"CUDA_VISIBLE_DEVICES": gpus[i], "TPU_VISIBLE_CHIPS": str(i)}
        only |= {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
        children.append(subprocess.Popen(command, env=os.environ | only))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [child.terminate() for child in children])
    return int(any([child.wait() for child in children]))


def chosen(args: argparse.Namespace) -> list[Row]:
    """The rows that the flags name, at least one.

    Raises:
      ValueError: there is none.
    """
    check_known("table", args.table, TABLES)
    rows = list(TABLES[args.table].rows)
    for flag, key in (("datasets", "dataset"), ("methods", "method")):
        given = getattr(args, flag)
        if given is not None:
            known = list(dict.fromkeys(getattr(row, key) for row in rows))
            found = command.split(given, f"{key} of {args.table}", known)
            rows = [row for row in rows if getattr(row, key) in found]
    return rows


def main() -> None:
    parser = command.Parser(__doc__)
    parser.add_argument("--table", required=True, help=", ".join(TABLES))
    parser.add_argument("--datasets", help="only these")
    parser.add_argument("--methods", help="only these")
    several = command.number(1, 1000)
    parser.add_argument("--seeds", type=several, default=1, help="how many, from 0 on")
    parser.add_argument("--protocol", default="paper", choices=runs.PROTOCOLS)
    seconds = command.number(0, 1e9, float)
    parser.add_argument("--budget", type=seconds, default=0, help="seconds; 0: no limit")
    parser.add_argument("--students", type=several, default=1, help="methods in one program")
    parser.add_argument(
        "--devices", type=command.number(1, 64), default=1, help="runs side by side, one per device"
    )
    parser.add_argument("--weights", type=command.folder, help="folder of published weights")
    parser.add_argument("--workdir", type=command.writable, default=Path("runs/tables"))
    parser.add_argument("--results", type=command.writable, default=ledger.RESULTS)
    args = parser.parse_args()
    try:
        todo = queue(chosen(args), args.protocol, args.seeds)
        problems = ledger.read(args.results)[1]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if args.devices > 1:
        sys.exit(spread(args.devices))
    logging.set_verbosity(logging.ERROR)
    enable_compilation_cache()
    worker = Worker(args.workdir, args.results, args.weights)
    for problem in problems:
        say(f"warning: {problem}")
    done = worker.done()
    left = [run for run in todo if run.hash not in done]
    failed = []
    with budget(args.budget) as stop, contextlib.suppress(Interrupted):
        say(f"{len(todo)} runs, {len(todo) - len(left)} of them done")
        failed = fill(worker, groups(left, args.students), stop)
    if stop.asked:
        say("stopped; the same command goes on from there")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
