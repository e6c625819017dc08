"""One teacher, many students: one program that asks the teacher once per batch.

Students of a company share everything but their methods and their seeds. The order of the images,
their augmentation and what methods draw at a step follow the company's data seed, which is the
first student's; a student's own seed decides its initial parameters and those of its method. So

- K methods with one seed are, each, the same run as `train_and_evaluate` with that configuration
  (to rounding; a test holds them to 1e-5 after a few steps). This is what the runner does: seeds
  stay independent of each other, and methods are compared on the same images;
- of K seeds, the first is the same as alone; another is reproduced by a company of its own with
  that data seed. Their spread is that of initialisation alone.

Students stand one after another in the compiled step: methods have different parameters, and on
two CPU cores K seeds of one method gain nothing from lax.map and lose by vmap (bench_company.py has
the numbers). So the runner uses neither; on an accelerator nobody has measured yet.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import flax.struct
import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import build, fingerprint, settings
from atkd_jax import workdir as files
from atkd_jax.checkpoint import Checkpoints, save_export
from atkd_jax.dispatch import make_dispatch
from atkd_jax.evaluate import make_evaluate
from atkd_jax.feed import make_feed
from atkd_jax.logs import Log, read_rows
from atkd_jax.models.size import count_params
from atkd_jax.program import Program, assemble, make_parallel
from atkd_jax.signals import Interrupted, StopSignal, stop_signal
from atkd_jax.step import Network, student_variables
from atkd_jax.train import (
    IN_FLIGHT,
    describe,
    export_meta,
    log_row,
    prepare_teacher,
)
from atkd_jax.types import Array, Batch, PyTree, TrainState
from experiments import runs


@flax.struct.dataclass
class Company:
    """The states of all students."""

    members: tuple[TrainState, ...]

    @property
    def step(self) -> Array:
        return self.members[0].step


class Once:
    """A teacher that is asked once: every student of one traced step gets the same answer."""

    def __init__(self, network: Network):
        self.network, self.answer = network, None

    def apply(self, variables: PyTree, image: Array, **kwargs):
        if self.answer is None:
            self.answer = self.network.apply(variables, image, **kwargs)
        return self.answer


def make_company_step(programs: Sequence[Program]) -> Callable:
    """Builds `step(company, teacher_variables, batch, rng) -> (company, metrics)` for one device.

    Metrics are those of `make_train_step`, for student i under "i/", and the mean loss.
    """

    def company_step(company: Company, teacher_variables: PyTree, batch: Batch, rng: Array):
        master = Once(programs[0].teacher) if programs[0].teacher else None
        members, metrics = [], {}
        for i, (program, state) in enumerate(zip(programs, company.members, strict=True)):
            state, own = program.step_for(master)(state, teacher_variables, batch, rng)
            members.append(state)
            metrics |= {f"{i}/{key}": value for key, value in own.items()}
        metrics["loss"] = sum(metrics[f"{i}/loss"] for i in range(len(members))) / len(members)
        return Company(tuple(members)), metrics

    return company_step


def check_members(configs: Sequence[ConfigDict]) -> None:
    """Raises ValueError if students do not fit into one company."""
    free = {"terms": {}, "ce_weight": 1.0, "seed": 0}
    first = runs.identity(configs[0].to_dict() | free)
    for config in configs:
        own = runs.identity(config.to_dict() | free)
        if keys := [key for key in first.keys() | own.keys() if first.get(key) != own.get(key)]:
            raise ValueError(
                f"students of one company share all but methods and seeds; these differ in"
                f" {', '.join(sorted(keys))}: train them apart"
            )
        if config.accumulate > 1:
            raise ValueError("accumulate splits the batch that a company shares; train them apart")


def train_company(
    configs: Sequence[ConfigDict], workdirs: Sequence[Path], data_seed: int | None = None
) -> None:
    """Trains students together, or goes on with the same students where they were stopped.

    Leaves in every workdir what `train_and_evaluate` leaves there, but for attention.png, and
    their number in summary.json. Seconds are the company's, divided among the students.

    Args:
      data_seed: of the images' order and augmentation; the first student's unless given.

    Raises:
      ValueError, FloatingPointError, Interrupted: as `train_and_evaluate`.
    """
    check_members(configs)
    for config, workdir in zip(configs, workdirs, strict=True):
        settings.check(config)
        files.check(config, workdir)
    with stop_signal() as stop:
        _train_company(configs, workdirs, stop, data_seed)


def _train_company(
    configs: Sequence[ConfigDict], workdirs: Sequence[Path], stop: StopSignal, data_seed: int | None
) -> None:
    data_seed = configs[0].seed if data_seed is None else data_seed
    members = {str(i): config.to_dict() for i, config in enumerate(configs)}
    own = workdirs[0].parent / f"company-{runs.name_of(members | {'data_seed': data_seed})}"
    size, lead = len(configs), configs[0]
    parallel = make_parallel(lead)
    feed = make_feed(build.source(lead), parallel, lead.batch_size, data_seed)
    programs = [assemble(config, parallel, feed) for config in configs]
    master, spec = programs[0].teacher, feed.spec
    known = {"data": fingerprint.of_data(feed.source), "versions": files.versions()}
    about, teacher_variables = {}, ()
    if master:
        teacher_variables, about["teacher"], known["teacher"] = prepare_teacher(
            lead, programs[0], known["data"], own
        )
    stop.check()

    checkpoints = Checkpoints(own / "checkpoints", lead.checkpoint.keep)
    if (step := checkpoints.latest()) is None:
        step = 0
        meta = {"sums": {}, "histories": [[] for _ in configs], "rows": [[] for _ in configs]}
        meta["seconds"] = 0.0
        state = Company(tuple(program.fresh() for program in programs))
    else:
        like = Company(tuple(program.like for program in programs))
        state, meta = checkpoints.restore(step, like, parallel.replicated)
        total = lead.epochs * feed.steps_per_epoch
        fingerprint.check_resumed(own, meta, known, step, int(state.step), total)
    rows = meta["rows"] if "rows" in meta else [read_rows(workdir, step) for workdir in workdirs]
    sums, histories, began = meta["sums"], meta["histories"], time.monotonic() - meta["seconds"]

    steps = programs[0].steps_per_dispatch
    company_step = make_company_step(programs)
    dispatch = parallel.spmd(make_dispatch(company_step, feed.fetch), spread=(3,), donate=(0,))
    evaluate = make_evaluate(programs[0].student, feed, parallel)
    per_epoch, seed = feed.steps_per_epoch, np.int32(data_seed)
    pending: deque = deque()

    def drain(left: int) -> None:
        nonlocal sums
        while len(pending) > left:
            part, last = jax.device_get(pending.popleft())
            check_finite(configs, last)
            sums = {k: np.asarray(sums.get(k, 0.0)) + v.astype(np.float64) for k, v in part.items()}

    def save() -> None:
        drain(0)
        meta = {"sums": {key: np.asarray(value).tolist() for key, value in sums.items()}}
        meta |= {"histories": histories, "rows": rows, "fingerprint": known}
        checkpoints.save(step, state, meta | {"seconds": time.monotonic() - began})

    def pause(due: bool) -> None:
        if due or stop.asked:
            save()
        if stop.asked and step < lead.epochs * per_epoch:
            raise Interrupted(f"saved at step {step} of {lead.epochs * per_epoch}")

    with ExitStack() as stack, closing(checkpoints), stop.hold():
        for config, workdir in zip(configs, workdirs, strict=True):
            files.write_json(workdir / "config.json", config.to_dict())
        logs = [
            stack.enter_context(closing(Log(workdir, own)))
            for workdir, own in zip(workdirs, rows, strict=True)
        ]
        for epoch in range(step // per_epoch, lead.epochs):
            for batches, start, end in feed.train(epoch, step % per_epoch, steps):
                data = (feed.train_data, batches, start, end, seed)
                state, part, last = dispatch(state, teacher_variables, *data)
                step += end - start
                pending.append((part, last))
                drain(IN_FLIGHT - 1)
                if step % per_epoch:  # the end of an epoch is saved with its test results
                    pause(False)
            drain(0)
            for i, (log, workdir) in enumerate(zip(logs, workdirs, strict=True)):
                test = evaluate(student_variables(state.members[i]))
                histories[i].append({"epoch": epoch + 1} | test)
                means = {k: v / per_epoch for k, v in of_member(sums, i).items()}
                files.write_arrays(workdir, epoch, means)
                row = log_row(step, epoch, means, test) | {"lr": float(programs[i].lr(step - 1))}
                rows[i].append(row)
                log.epoch(row)
            sums = {}
            pause((epoch + 1) % lead.checkpoint.every_epochs == 0 or epoch + 1 == lead.epochs)

    with stop.hold():
        seconds = (time.monotonic() - began) / size
        for config, program, member, history, workdir in zip(
            configs, programs, state.members, histories, workdirs, strict=True
        ):
            meta = export_meta(config, program, history) | {"fingerprint": known}
            save_export(workdir / "export", student_variables(member), meta)
            params = program.like.params
            student = describe(config.student, program.student, params["student"], spec)
            result = about | {
                "student": student,
                "method_params": count_params(params["method"]),
                "data": spec.name,
                "class_names": spec.class_names,
                "last": history[-1],
                "best": max(history, key=lambda row: row["top1"]),
                "company": size,
                "seconds": seconds,
                "images_per_second": config.epochs * per_epoch * config.batch_size / seconds,
                "hardware": files.hardware(),
                "versions": files.versions(),
                "fingerprint": known,
                "config": config.to_dict(),
            }
            files.write_json(workdir / "summary.json", result)
        shutil.rmtree(own)


def of_member(sums: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    """The metrics of student i."""
    return {k.removeprefix(f"{i}/"): v for k, v in sums.items() if k.startswith(f"{i}/")}


def check_finite(configs: Sequence[ConfigDict], last: dict[str, np.ndarray]) -> None:
    """Raises FloatingPointError naming the students whose loss is not finite."""
    bad = [i for i in range(len(configs)) if not np.isfinite(last[f"{i}/loss"])]
    if bad:
        names = ", ".join("+".join(configs[i].terms) or "none" for i in bad)
        raise FloatingPointError(
            f"the loss of {names} is not finite at step {int(last['step'])}; train it alone, with a"
            " lower optimizer.lr or weight"
        )
