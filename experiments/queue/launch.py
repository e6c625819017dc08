"""Fills tables: a queue of jobs that can be stopped and continued at any time.

    python -m experiments.queue.launch --table=rtk_table1 --datasets=cifar10 --seeds=3 \
      --protocol=paper --budget=570 [--methods=kd,rtk] [--only=images=500] [--weights=FOLDER] \
      [--students=4] [--devices=8]

A job is named by the hash of its configuration (jobs.py). Finished ones have a line in
experiments/results/ and are skipped; a job that was stopped resumes from its checkpoint. When the
budget is over, the current job is saved, and the same command continues with it. A job is locked
while a process works on it, so several processes may share a queue: `--devices=N` starts N, one per
device.

`--students=K` trains K methods of the same pair and seed together, with one forward pass of their
teacher per batch. They resume only together: keep the flags.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.errors import UserError, check_known
from atkd_jax.runtime.preemption import Interrupted, StopSignal, stop_signal
from experiments import arguments
from experiments.queue import jobs
from experiments.queue.jobs import Job
from experiments.queue.worker import Worker, say
from experiments.results import store
from experiments.tables.rows import TABLES, Row


def make_queue(rows: list[Row], protocol: str, seeds: int) -> list[Job]:
    """The jobs behind rows, each once: the first seed of all rows, then the second, ..."""
    found = {}
    for seed in range(seeds):
        for row in rows:
            job = jobs.resolve(row.config, row.role, protocol, seed)
            found.setdefault(job.hash, job)
    return list(found.values())


def make_groups(todo: list[Job], students: int) -> list[list[Job]]:
    """Up to `students` jobs each that share everything but their methods, in the queue's order."""
    waiting: dict[str, list[Job]] = {}
    for job in todo:
        key = jobs.group_of(job) if job.config.terms else job.hash
        waiting.setdefault(key, []).append(job)
    return [
        members[i : i + students]
        for members in waiting.values()
        for i in range(0, len(members), students)
    ]


@contextlib.contextmanager
def budget(seconds: float) -> Iterator[StopSignal]:
    """Sets the stop signal when the time is over; 0: never."""
    with stop_signal() as stop:
        before = signal.signal(signal.SIGALRM, lambda *_: setattr(stop, "asked", True))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield stop
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def work_through(worker: Worker, groups: list[list[Job]], stop: StopSignal) -> None:
    """Carries out a queue until a signal comes."""
    with contextlib.suppress(Interrupted):
        for group in groups:
            if stop.asked:
                break
            worker.work(group)


def start_per_device(devices: int) -> int:
    """Starts this command once per device, forwards signals, and waits; returns the exit code."""
    command = [sys.executable, "-m", "experiments.queue.launch", *sys.argv[1:], "--devices=1"]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = given.split(",") if given else [str(i) for i in range(devices)]
    if devices > len(gpus):
        raise UserError(f"--devices={devices}, but CUDA_VISIBLE_DEVICES is {given}")
    children = []
    for i in range(devices):
        only = {"CUDA_VISIBLE_DEVICES": gpus[i], "TPU_VISIBLE_CHIPS": str(i)}
        only |= {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
        children.append(subprocess.Popen(command, env=os.environ | only))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: [child.terminate() for child in children])
    return int(any([child.wait() for child in children]))


def choose_rows(args: argparse.Namespace) -> list[Row]:
    """The rows that the flags name, at least one.

    Raises:
      UserError: there is none.
    """
    check_known("table", args.table, TABLES)
    rows = list(TABLES[args.table].rows)
    for flag, key in (("datasets", "dataset"), ("methods", "method")):
        given = getattr(args, flag)
        if given is not None:
            known = list(dict.fromkeys(getattr(row, key) for row in rows))
            found = arguments.split(given, f"{key} of {args.table}", known)
            rows = [row for row in rows if getattr(row, key) in found]
    for option in filter(None, args.only.split(",")):
        rows = [row for row in rows if option in row.config.partition(":")[2].split(",")]
        if not rows:
            raise UserError(f"no row of {args.table} that is left has the option {option}")
    return rows


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--table", required=True, help=", ".join(TABLES))
    parser.add_argument("--datasets", help="only these")
    parser.add_argument("--methods", help="only these")
    parser.add_argument("--only", default="", help="rows with these, as images=500,steps=781")
    several = number(1, 1000)
    parser.add_argument("--seeds", type=several, default=1, help="how many, from 0 on")
    parser.add_argument("--protocol", default="paper", choices=jobs.PROTOCOLS)
    seconds = number(0, 1e9, float)
    parser.add_argument("--budget", type=seconds, default=0, help="seconds; 0: no limit")
    parser.add_argument("--students", type=several, default=1, help="methods trained together")
    parser.add_argument(
        "--devices",
        type=number(1, 64),
        default=1,
        help="processes side by side, one per device",
    )
    parser.add_argument("--weights", type=arguments.folder, help="folder of published weights")
    parser.add_argument("--workdir", type=arguments.writable, default=Path("runs/tables"))
    parser.add_argument("--results", type=arguments.writable, default=store.RESULTS)
    args = parser.parse_args()
    queue = make_queue(choose_rows(args), args.protocol, args.seeds)
    problems = store.read(args.results)[1]
    if args.devices > 1:
        sys.exit(start_per_device(args.devices))
    worker = Worker(args.workdir, args.results, args.weights)
    for problem in problems:
        say(f"warning: {problem}")
    done = worker.done()
    left = [job for job in queue if job.hash not in done]
    with budget(args.budget) as stop, contextlib.suppress(Interrupted):
        say(f"{len(queue)} runs, {len(queue) - len(left)} of them done")
        work_through(worker, make_groups(left, args.students), stop)
    if stop.asked:
        say("stopped; the same command goes on from there")
    sys.exit(1 if worker.failed else 0)


if __name__ == "__main__":
    with entry_point(), stop_signal():
        main()
