"""Fills tables: a queue of runs that survives anything.

    python -m experiments.run --table=rtk_table1 --datasets=cifar10 --seeds=3 --protocol=paper \
      --budget=570 [--methods=kd,rtk] [--weights=FOLDER] [--students=4] [--devices=8]

A run is named by the hash of its configuration (runs.py). Finished ones have a line in
experiments/results/ and are skipped; a broken one goes on from its checkpoint; when the budget is
over, the run of the moment is saved and the same command goes on with it. A run is locked while
someone works on it, so several of these may share a queue: `--devices=N` starts N, one per device.

`--students=K` trains K methods of the same pair and seed in one program that asks the teacher once
per batch (company.py).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from atkd_jax.errors import check_known
from atkd_jax.main import cache_compilations
from atkd_jax.signals import Interrupted, StopSignal, stop_signal
from atkd_jax.train import train_and_evaluate
from experiments import ledger, runs
from experiments.company import train_company
from experiments.measure import measure
from experiments.runs import Run
from experiments.tables import TABLES, Row

REMIND = 1.0  # seconds between two calls to stop: one can come while nobody listens


class Busy(Exception):
    """Another process works on this run."""


class Worker:
    """Does runs. `workdir` holds one folder per run, `weights` the published teachers."""

    def __init__(self, workdir: Path, results: Path, weights: Path | None):
        self.workdir, self.results, self.weights = workdir, results, weights

    def folder(self, run: Run) -> Path:
        return self.workdir / run.hash

    def done(self, run: Run) -> bool:
        return run.hash in ledger.read(self.results)[0]

    def locate(self, run: Run) -> None:
        """Replaces the teacher's name in the configuration by the path of its weights."""
        config = run.config
        if run.teacher:
            config.teacher.weights = str(self.folder(run.teacher) / "export")
        elif config.terms:
            config.teacher.weights = str(published(config.teacher.weights, self.weights))

    @contextlib.contextmanager
    def locked(self, run: Run, wait: bool = False) -> Iterator[None]:
        """Raises Busy if another process has the run, unless told to wait."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        with (self.workdir / f"{run.hash}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise Busy(f"{run.hash} is being worked on by another process") from error
            yield

    def work(self, group: list[Run]) -> None:
        """Trains what is not done yet of runs that differ in their methods alone; one, or many."""
        master = group[0].teacher
        if master and not self.done(master):
            with self.locked(master, wait=True):
                self.train([run for run in [master] if not self.done(run)])
        with contextlib.ExitStack() as locks:
            for run in group:
                locks.enter_context(self.locked(run))
            self.train([run for run in group if not self.done(run)])

    def train(self, group: list[Run]) -> None:
        """Trains and measures; what trainings say goes to FOLDER.log."""
        for run in group:
            self.locate(run)
        if not group:
            return
        folders = [self.folder(run) for run in group]
        with folders[0].with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log):
            own = train_company([r.config for r in group], folders) if len(group) > 1 else None
            for run, folder in zip(group, folders, strict=True):
                summary = train_and_evaluate(run.config, folder)  # reads it, if it is there
                line = measure(run, folder, summary, company=len(group))
                ledger.append(self.results / f"{run.config.data.name}.jsonl", line)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                say(f"{run.text} {run.role} seed {run.seed}: top-1 {summary['last']['top1']:.2f}")
            if own:
                shutil.rmtree(own)


def say(text: str) -> None:
    """To the terminal, also while stdout goes to a log."""
    print(text, file=sys.__stdout__, flush=True)


def published(name: str, folder: Path | None) -> Path:
    """The path of published weights; their SHA-256 has to begin as their name says."""
    if folder is None or not (folder / name).exists():
        raise ValueError(f"{name} is needed; give the folder that holds it with --weights=FOLDER")
    digits = Path(name).stem.rpartition("-")[2]
    if not runs.digest(folder / name).startswith(digits):
        raise ValueError(f"{folder / name} is damaged: its SHA-256 does not begin with {digits}")
    return folder / name


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
    """SIGTERM to ourselves when the time is over: training listens to it, and so do we."""
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with stop_signal() as stop:
        signal.setitimer(signal.ITIMER_REAL, seconds, REMIND)
        try:
            yield stop
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def fill(worker: Worker, todo: list[list[Run]], stop: StopSignal) -> list[str]:
    """Works through the queue; what failed, in words."""
    failed = []
    for group in todo:
        if stop.asked:
            break
        about = f"{group[0].text} seed {group[0].seed}"
        try:
            worker.work(group)
        except Interrupted:
            stop.asked = True
        except Busy as busy:
            say(str(busy))
        except (ValueError, FloatingPointError, OSError) as error:
            failed.append(f"{about}: {error}")
            say(f"error: {failed[-1]}")
            log = worker.folder(group[0]).with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                traceback.print_exc(file=file)
    return failed


def spread(devices: int) -> int:
    """Starts this command once per device, hands signals on, and waits."""
    rest = [a for a in sys.argv[1:] if not a.startswith("--devices")]
    command = [sys.executable, "-m", "experiments.run", *rest]
    children = []
    for i in range(devices):
        only = {"CUDA_VISIBLE_DEVICES": str(i), "TPU_VISIBLE_CHIPS": str(i)}
        only |= {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
        children.append(subprocess.Popen(command, env=os.environ | only))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [child.terminate() for child in children])
    return max(child.wait() for child in children)


def chosen(args: argparse.Namespace) -> list[Row]:
    """The rows that the flags name."""
    check_known("table", args.table, TABLES)
    rows = list(TABLES[args.table].rows)
    for flag, key in (("datasets", "dataset"), ("methods", "method")):
        for name in filter(None, getattr(args, flag).split(",")):
            check_known(f"{key} of {args.table}:", name, {getattr(row, key) for row in rows})
        if given := getattr(args, flag):
            rows = [row for row in rows if getattr(row, key) in given.split(",")]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, help=", ".join(TABLES))
    parser.add_argument("--datasets", default="", help="only these")
    parser.add_argument("--methods", default="", help="only these")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    parser.add_argument("--protocol", default="paper", choices=runs.PROTOCOLS)
    parser.add_argument("--budget", type=float, default=0, help="seconds; 0: no limit")
    parser.add_argument("--students", type=int, default=1, help="methods in one program")
    parser.add_argument("--devices", type=int, default=1, help="runs side by side, one per device")
    parser.add_argument("--weights", type=Path, help="folder of published weights")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"))
    parser.add_argument("--results", type=Path, default=ledger.RESULTS)
    args = parser.parse_args()
    if args.devices > 1:
        sys.exit(spread(args.devices))
    logging.set_verbosity(logging.ERROR)
    cache_compilations()
    worker = Worker(args.workdir, args.results, args.weights)
    try:
        todo = queue(chosen(args), args.protocol, args.seeds)
    except ValueError as error:
        sys.exit(f"error: {error}")
    results = ledger.read(args.results)[0]
    left = [run for run in todo if run.hash not in results]
    with budget(args.budget) as stop:
        say(f"{len(todo)} runs, {len(todo) - len(left)} of them done")
        failed = fill(worker, groups(left, args.students), stop)
    if stop.asked:
        say("stopped; the same command goes on from there")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
