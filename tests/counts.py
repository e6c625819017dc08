"""The same command for one student, or for three of different seeds that are trained together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from small_runs import exported, log_without_times, saved_state, saved_steps


@dataclasses.dataclass(frozen=True)
class Count:
    """How many students a process trains; call it in the process before the command."""

    students: int

    def __call__(self) -> None:
        from atkd_jax import main
        from atkd_jax.training.loop import train_students

        def train_all(config, workdir):
            configs = [config.copy_and_resolve_references() for _ in range(self.students)]
            for seed, own in enumerate(configs):
                own.seed = seed
            return train_students(configs, self.workdirs(workdir))[0]

        if self.students > 1:
            main.train_and_evaluate = train_all

    def workdirs(self, workdir: Path) -> list[Path]:
        if self.students == 1:
            return [workdir]
        return [workdir / str(i) for i in range(self.students)]

    def home(self, workdir: Path) -> Path:
        """Where the checkpoints of an unfinished run lie."""
        if self.students == 1:
            return workdir
        return next(workdir.glob("together-*"), workdir / "not begun")

    def saved_steps(self, workdir: Path) -> list[int]:
        return saved_steps(self.home(workdir))

    def results(self, workdir: Path) -> tuple[list, list]:
        """Of a finished run: arrays, which are to have the same bits, and rows of the logs."""
        workdirs = self.workdirs(workdir)
        arrays = [exported(path) for path in workdirs]
        if self.students == 1:
            arrays.append(saved_state(workdir))
        return arrays, [log_without_times(path) for path in workdirs]


counts = pytest.mark.parametrize("count", [Count(1), Count(2)], ids=["alone", "together"])
