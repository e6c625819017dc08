"""Students in training: states, metrics of an epoch, and students that are dropped."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax.errors import UserError
from atkd_jax.runtime import fingerprint, hosts, run_files
from atkd_jax.runtime.checkpoint import Checkpoints, nonfinite
from atkd_jax.runtime.devices import Parallel
from atkd_jax.runtime.logs import Progress, read_rows
from atkd_jax.training.loader import Loader
from atkd_jax.training.setup import Setup, compile_steps
from atkd_jax.training.step import SharedTeacherStep, student_variables
from atkd_jax.types import PyTree, TrainState


@dataclasses.dataclass(eq=False)
class Student:
    """One student in training.

    Attributes:
      sums: metrics, summed over the steps since the last row.
      history: test results by epoch.
      rows: rows of metrics.jsonl.
      error: why it was dropped.
    """

    config: ConfigDict
    workdir: Path
    setup: Setup
    sums: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    error: FloatingPointError | None = None

    @property
    def name(self) -> str:
        """Distinguishes it from students that are trained with it."""
        return f"{'+'.join(self.config.terms) or 'no method'}, seed {self.config.seed}"

    def add(self, sums: dict[str, np.ndarray]) -> None:
        """Adds the metrics of some steps."""
        for key, value in sums.items():
            self.sums[key] = np.asarray(self.sums.get(key, 0.0)) + value.astype(np.float64)

    def means(self, step: int) -> dict[str, np.ndarray]:
        """Returns the means over the steps since the last row, up to `step`; resets the sums."""
        steps = step - (self.rows[-1]["step"] if self.rows else 0)
        means = {key: value / steps for key, value in self.sums.items()}
        self.sums = {}
        return means

    def record(self) -> dict[str, Any]:
        """What a checkpoint contains besides the state."""
        sums = {key: np.asarray(value).tolist() for key, value in self.sums.items()}
        return {"sums": sums, "history": self.history, "rows": self.rows}

    def resume(self, record: dict[str, Any], step: int) -> None:
        """Restores what `record` returned; checkpoints of old versions do not contain the rows."""
        self.sums, self.history = record["sums"], record["history"]
        self.rows = record["rows"] if "rows" in record else read_rows(self.workdir, step)


class Students:
    """The students of a run and the states of those that are still trained.

    A student whose numbers are not finite is dropped before the next checkpoint or at the end of
    the epoch. Until then it does not affect the others, because students share no parameters.
    """

    def __init__(
        self,
        students: list[Student],
        parallel: Parallel,
        loader: Loader,
        checkpoints: Checkpoints,
    ):
        self.all, self.parallel, self.loader = students, parallel, loader
        self.checkpoints = checkpoints
        self.asked_to_stop = False  # by a signal to any host, as of the last collected call
        self.pending: deque = deque()  # calls whose metrics have not been collected

    def __iter__(self) -> Iterator[tuple[Student, TrainState]]:
        return zip(self.active, self.states, strict=True)

    def restore_or_initialise(
        self, home: Path, known: dict[str, Any], total: int, data_seed: int
    ) -> tuple[int, float]:
        """Restores the newest checkpoint, or makes initial states.

        Args:
          home: the folder that contains the checkpoints.
          known: fingerprints of the present data, teacher and versions.
          total: steps of the run.
          data_seed: seed of the order of the images.

        Returns:
          the step, and the seconds spent so far.

        Raises:
          UserError: the checkpoint is damaged, or of another run.
        """
        step = self.checkpoints.latest()
        hosts.assert_equal_across_hosts(
            str(step), f"hosts see different checkpoints in {home}; is it shared?"
        )
        if step is None:
            active = [s for s in self.all if run_files.read_summary(s.workdir) is None]
            hosts.assert_equal_across_hosts(
                repr([self.all.index(s) for s in active]),
                f"hosts see different finished students beside {home}; is the disk shared?",
            )
            self._continue_with(active, [self._initial_state(s) for s in active])
            return 0, 0.0
        if self.alone:
            abstract = self.all[0].setup.abstract_state
        else:
            there = self.checkpoints.read_meta(step)["students"]
            abstract = {i: self.all[int(i)].setup.abstract_state for i in there}
        tree, meta = self.checkpoints.restore(step, abstract, self.parallel.replicated)
        records = {"0": meta} if self.alone else meta["students"]
        states = [tree] if self.alone else [tree[i] for i in records]
        fingerprint.check_resumed(home, meta, known, step, int(states[0].step), total)
        if (seed := meta.get("data_seed", self.all[0].config.seed)) != data_seed:
            raise UserError(
                f"the run in {home} began with data_seed {seed}, not {data_seed}; give that one, or"
                " another workdir"
            )
        for i, record in records.items():
            self.all[int(i)].resume(record, step)
        for i, message in meta.get("dropped", {}).items():
            self.all[int(i)].error = FloatingPointError(message)
        self._continue_with([self.all[int(i)] for i in records], states)
        hosts.log_once(f"going on from step {step}")
        return step, meta["seconds"]

    def _initial_state(self, student: Student) -> TrainState:
        return self.parallel.init(student.setup.init_state, np.int32(student.config.seed))

    @property
    def alone(self) -> bool:
        return len(self.all) == 1

    def _continue_with(self, active: list[Student], states: list[TrainState]) -> None:
        self.active, self.states = active, tuple(states)
        step = SharedTeacherStep(tuple(student.setup.step for student in active))
        self._multi_step = compile_steps(step, self.parallel, self.loader.fetch)

    def take_steps(
        self,
        step: int,
        teacher_variables: PyTree,
        stack: PyTree,
        start: int,
        end: int,
        seed: np.int32,
        asked: bool,
    ) -> None:
        """Starts a call for the steps from `start` up to `end` of a stack.

        Args:
          step: of the run, before the call.
          asked: whether this host received a signal to stop.
        """
        data = self.loader.train_data
        self.states, *metrics = self._multi_step(
            self.states, teacher_variables, data, stack, start, end, seed
        )
        self.pending.append((step, *metrics, self.parallel.any_host(asked)))

    def collect_metrics(self, left: int, progress: Progress) -> None:
        """Fetches the metrics of all but the `left` newest calls.

        Raises:
          FloatingPointError: no student's loss is finite.
        """
        while len(self.pending) > left:
            first, sums, last, taken, asked = jax.device_get(self.pending.popleft())
            self.asked_to_stop |= bool(asked)
            step = first + int(taken)
            for student, own_sums in zip(self.active, sums, strict=True):
                student.add(own_sums)
                if student.error is None:
                    student.error = self._diverged(own_sums, first, step - 1)
            losses = [
                own["loss"]
                for student, own in zip(self.active, last, strict=True)
                if student.error is None
            ]
            if not losses:
                self.raise_if_dropped()
            progress.advance(step, float(np.mean(losses)))

    def _diverged(
        self, sums: dict[str, np.ndarray], first: int, last: int
    ) -> FloatingPointError | None:
        """The error of a student whose loss is not finite in one of these steps.

        A call ends with the step in which the loss of the only student is not finite, and goes on
        if there are others.
        """
        if np.isfinite(sums["loss"]):
            return None
        bad = [k for k, value in sums.items() if not np.all(np.isfinite(value)) and k != "loss"]
        where = f"at step {last}" if self.alone or first == last else f"in steps {first} to {last}"
        what = f"the loss is not finite {where} (in: {', '.join(bad) or 'loss'})"
        return self._error(what)

    def _error(self, what: str) -> FloatingPointError:
        if self.alone:
            return self.checkpoints.diverged(what)
        return FloatingPointError(f"{what}; lower optimizer.lr or the term's weight")

    def test(
        self, evaluate: Callable[[PyTree], dict[str, float]], epoch: int
    ) -> Iterator[tuple[Student, dict[str, float]]]:
        """Evaluates every student, and yields it with its results.

        Raises:
          FloatingPointError: no student's loss is finite.
        """
        self._drop_diverged()
        for student, state in self:
            try:
                test = evaluate(student_variables(state))
            except FloatingPointError as error:
                student.error = error
                continue
            student.history.append({"epoch": epoch + 1} | test)
            yield student, test
        self._drop_diverged()

    def save(self, step: int, meta: dict[str, Any]) -> None:
        """Writes a checkpoint of the students whose numbers are finite.

        Raises:
          FloatingPointError: there is none.
        """
        if self.alone:
            self._drop_diverged()
            self.checkpoints.save(step, self.states[0], self.active[0].record() | meta)
            return
        for student, state in self:
            if where := nonfinite(state):
                what = f"the state after step {step} is not finite (in: {where})"
                student.error = student.error or self._error(what)
        self._drop_diverged()
        tree = {str(self.all.index(student)): state for student, state in self}
        records = {str(self.all.index(student)): student.record() for student in self.active}
        errors = {str(i): str(student.error) for i, student in enumerate(self.all) if student.error}
        meta = meta | {"students": records, "dropped": errors}
        self.checkpoints.save(step, tree, meta)

    def _drop_diverged(self) -> None:
        """Drops the students that diverged."""
        kept = [(student, state) for student, state in self if student.error is None]
        if not kept:
            self.raise_if_dropped()
        if len(kept) < len(self.active):
            for student in self.active:
                if student.error is not None:
                    hosts.log_once(f"{student.name} is dropped: {student.error}")
            self._continue_with(*map(list, zip(*kept, strict=True)))

    def failure(self) -> FloatingPointError | None:
        """The error that names the dropped students; None if there are none."""
        if self.alone:
            return self.all[0].error
        dropped = [f"{student.name}: {student.error}" for student in self.all if student.error]
        return FloatingPointError("; ".join(dropped)) if dropped else None

    def raise_if_dropped(self) -> None:
        """Raises FloatingPointError if students were dropped."""
        if error := self.failure():
            raise error
