"""Does runs: a lock while it works on one, the teacher first, the result line last."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any

from atkd_jax.runtime.preemption import Interrupted, stop_signal
from atkd_jax.training.loop import train_and_evaluate
from experiments import ledger, runs
from experiments.company import train_company
from experiments.measure import Damaged, commit, measure
from experiments.runs import Run


class Worker:
    """Does runs. `workdir` holds one folder per run, `weights` the published teachers."""

    def __init__(self, workdir: Path, results: Path, weights: Path | None):
        self.workdir, self.results = workdir.resolve(), results.resolve()
        self.weights = weights.resolve() if weights else None
        self.commit = commit()  # of the code that is running, whatever is committed meanwhile

    def folder(self, run: Run) -> Path:
        return self.workdir / run.hash

    def done(self) -> set[str]:
        """The names of runs that have a result line."""
        return set(ledger.lines(self.results)[0])

    def locate(self, run: Run) -> None:
        """Replaces the teacher's name in the configuration by the path of its weights."""
        config = run.config
        if run.teacher:
            config.teacher.weights = str(self.folder(run.teacher) / "export")
        elif config.terms:
            config.teacher.weights = str(published(config.teacher.weights, self.weights))

    def lock(self, run: Run) -> IO | None:
        """A file that keeps others from a run while it is open; None if another has the run.

        What the file holds does not matter. A link is not followed: its end is nobody's lock.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / f"{run.hash}.lock"
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def work(self, group: list[Run]) -> None:
        """Trains what is not done yet of runs that differ in their methods alone; one, or many."""
        if group[0].teacher:
            self.prepare(group[0].teacher)
        with contextlib.ExitStack() as locks:
            mine = []
            for run in group:
                if lock := self.lock(run):
                    locks.enter_context(lock)
                    mine.append(run)
                else:
                    say(f"{run.hash} ({run.text}) is being worked on by another process")
            done = self.done()  # read when the locks are ours: nobody adds these now
            self.train([run for run in mine if run.hash not in done])

    def prepare(self, master: Run) -> None:
        """Trains a teacher whose weights are not in this workdir; waits if another does so."""
        end = self.folder(master) / "summary.json"
        with stop_signal() as stop:
            while not end.exists():
                if lock := self.lock(master):
                    with lock:
                        self.train([] if end.exists() else [master])
                elif stop.asked:
                    raise Interrupted("another process trains the teacher")
                else:
                    time.sleep(1)

    def train(self, group: list[Run]) -> None:
        """Trains and measures; what trainings say goes to FOLDER.log."""
        if not group:
            return
        for run in group:
            self.locate(run)
        folders, done = [self.folder(run) for run in group], self.done()
        with folders[0].with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log):
            todo = [i for i, f in enumerate(folders) if not (f / "summary.json").exists()]
            if len(todo) > 1:
                train_company([group[i].config for i in todo], [folders[i] for i in todo])
            for run, folder in zip(group, folders, strict=True):
                summary = train_and_evaluate(run.config, folder)  # reads it, if it is there
                if run.hash not in done:  # a teacher is trained again where its weights are not
                    self.tell(run, folder, summary)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                say(f"{run.text} {run.role} seed {run.seed}: top-1 {summary['last']['top1']:.2f}")

    def tell(self, run: Run, folder: Path, summary: dict[str, Any]) -> None:
        """Adds the result line of a run that is finished."""
        advice = "move the folder away, and the same command trains the run again"
        try:
            line = measure(run, folder, summary, self.commit)
        except Damaged as error:
            raise ValueError(f"{folder} gives no result: {error}; {advice}") from error
        try:
            ledger.append(self.results / f"{run.config.data.name}.jsonl", line)
        except ValueError as error:
            raise ValueError(f"{folder} gives no result: {error}; {advice}") from error

    def trained(self, group: list[Run]) -> bool:
        """Whether all of these are finished, so that nothing but their measurement is left."""
        return all((self.folder(run) / "summary.json").exists() for run in group)


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
