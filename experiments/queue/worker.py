"""Carries out jobs: a lock while it works on one, the teacher first, the result line last."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from atkd_jax.command_line import MISTAKES
from atkd_jax.errors import UserError
from atkd_jax.runtime import run_files
from atkd_jax.runtime.preemption import Interrupted, stop_signal
from atkd_jax.training.loop import train_students
from experiments.queue import jobs
from experiments.queue.jobs import Job
from experiments.results import store
from experiments.results.measure import commit, measure
from experiments.results.schema import Damaged


class Worker:
    """Carries out jobs, each in a folder of `workdir`.

    Attributes:
      results: the folder of the result lines.
      weights: the folder of published teachers, if there is one.
      failed: hash -> reason of the jobs that failed in this process; a teacher that failed is not
        trained again for every student.
    """

    def __init__(self, workdir: Path, results: Path, weights: Path | None):
        self.workdir, self.results = workdir.resolve(), results.resolve()
        self.weights = weights.resolve() if weights else None
        self.commit = commit()  # of the code that is running, whatever is committed meanwhile
        self.failed: dict[str, str] = {}

    def folder(self, job: Job) -> Path:
        return self.workdir / job.hash

    def log(self, job: Job) -> Path:
        return self.folder(job).with_suffix(".log")

    def trained(self, job: Job) -> bool:
        """Whether nothing is left to do but to measure the student."""
        return (self.folder(job) / "summary.json").exists()

    def done(self) -> set[str]:
        """The hashes of jobs that have a result line."""
        return set(store.lines(self.results)[0])

    def locate_teacher(self, job: Job) -> None:
        """Replaces the teacher's name in the configuration by the path of its weights."""
        config = job.config
        if job.teacher:
            config.teacher.weights = str(self.folder(job.teacher) / "export")
        elif config.terms:
            config.teacher.weights = str(published_weights(config.teacher.weights, self.weights))

    def lock(self, job: Job) -> IO | None:
        """A file that keeps other workers from a job while it is open; None if one has the job.

        Training locks the job's folder as well; this lock also covers the result line, and another
        worker can pass over the job without an error. The content of the file does not matter. A
        link is not followed, as its target would be locked for whatever else it is.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / f"{job.hash}.lock"
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def work(self, group: list[Job]) -> None:
        """Trains and measures what is not done yet of jobs that differ in their methods alone.

        What fails is reported and noted in `failed`; it costs no other job.

        Raises:
          Interrupted: a signal came; everything is saved.
        """
        with contextlib.ExitStack() as locks, self.report_failure(group):
            if group[0].teacher:
                self.prepare_teacher(group[0].teacher)
            mine = []
            for job in group:
                if lock := self.lock(job):
                    locks.enter_context(lock)
                    mine.append(job)
                else:
                    say(f"{job.hash} ({job.text}) is being worked on by another process")
            done = self.done()  # read under the locks: nobody adds these now
            self.train([job for job in mine if job.hash not in done])

    def prepare_teacher(self, teacher: Job) -> None:
        """Trains a teacher whose weights are not in this workdir; waits if another worker does.

        Raises:
          UserError: its training failed, now or before.
        """
        with stop_signal() as stop:
            while not self.trained(teacher):
                if teacher.hash in self.failed:
                    raise UserError(f"its teacher failed: {self.failed[teacher.hash]}")
                if lock := self.lock(teacher):
                    with lock:
                        self.train([] if self.trained(teacher) else [teacher])
                elif stop.asked:
                    raise Interrupted("another process trains the teacher")
                else:
                    time.sleep(1)

    def train(self, group: list[Job]) -> None:
        """Trains jobs together and measures them; what trainings print goes to FOLDER.log.

        A student that diverges is dropped and fails alone.
        """
        if not group:
            return
        for job in group:
            self.locate_teacher(job)
        with self.log(group[0]).open("a") as log, contextlib.redirect_stdout(log):
            if not all(map(self.trained, group)):
                folders = [self.folder(job) for job in group]
                with self.report_failure(group):
                    train_students([job.config for job in group], folders)
            for job in filter(self.trained, group):
                with self.report_failure([job]):
                    self.measure(job)

    def measure(self, job: Job) -> None:
        """Adds the result line of a job that is trained, and removes its checkpoints."""
        folder = self.folder(job)
        summary = run_files.read_summary(folder)
        if job.hash not in self.done():  # a teacher is trained again where its weights are not
            try:
                line = measure(job, folder, summary, self.commit)
                store.append(self.results / f"{job.config.data.name}.jsonl", line)
            except Damaged as error:
                raise UserError(
                    f"{folder} gives no result: {error}; move the folder away, and the same command"
                    " trains it again"
                ) from error
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        say(f"{job}: top-1 {summary['last']['top1']:.2f}")

    @contextlib.contextmanager
    def report_failure(self, group: list[Job]) -> Iterator[None]:
        """Reports and notes an error instead of raising it: the rest of the queue goes on."""
        try:
            yield
        except Exception as error:
            reason = describe(error)
            if not isinstance(error, MISTAKES):
                traceback.print_exc()
            lost = [job for job in group if not self.trained(job)] or group
            if self.log(group[0]).exists():
                reason += f" (see {self.log(group[0])})"
            self.failed |= {job.hash: reason for job in lost}
            say(f"error: {', '.join(map(str, lost))}: {reason}")


def describe(error: Exception) -> str:
    """An error in one line."""
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, MISTAKES):
        return line
    return f"{type(error).__name__}: {line}".removesuffix(": ")


def say(text: str) -> None:
    """Prints to the terminal, even while stdout is redirected to a log."""
    print(text, file=sys.__stdout__, flush=True)


def published_teacher(data: str, model: str, folder: Path | None) -> Path:
    """The path of the published weights of `model` for a data set; raises as below."""
    name, _ = jobs.PUBLISHED_WEIGHTS[data, model]
    return published_weights(name, folder)


def published_weights(name: str, folder: Path | None) -> Path:
    """The path of published weights.

    Raises:
      UserError: they are not there, or their SHA-256 does not begin with the digits in their name.
    """
    if folder is None or not (folder / name).exists():
        raise UserError(f"{name} is needed; give the folder that holds it with --weights=FOLDER")
    digits = Path(name).stem.rpartition("-")[2]
    if not jobs.digest(folder / name).startswith(digits):
        raise UserError(f"{folder / name} is damaged: its SHA-256 does not begin with {digits}")
    return folder / name
