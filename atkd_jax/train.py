"""A run, top to bottom: build, teacher, restore, loop. Without terms, this trains teachers."""

from __future__ import annotations

import errno
import json
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import fingerprint, hosts, picture, settings, teacher
from atkd_jax import workdir as files
from atkd_jax.checkpoint import Checkpoints, save_export
from atkd_jax.data import preparation
from atkd_jax.data.prefetch import Waiting
from atkd_jax.evaluate import make_evaluate
from atkd_jax.fingerprint import Facts
from atkd_jax.lock import claim
from atkd_jax.logs import Log, Progress, read_rows
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.program import Program, make_program
from atkd_jax.signals import Interrupted, StopSignal, stop_signal
from atkd_jax.step import student_variables
from atkd_jax.types import PyTree

IN_FLIGHT = 2  # dispatches; more let simulated devices dead-lock and tell of a NaN too late
PICTURED = 6  # test images in attention.png


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains a student as `config` says, or goes on with the run that `workdir` holds.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, epochs/ (metrics that are
    arrays), export/ (the trained network), attention.png and summary.json, whose content is
    returned. A teacher without weights is trained first, by the same code, in `workdir/teacher`.

    Raises:
      ValueError: the configuration, the data, the teacher or the workdir does not fit, or is not
        what the run began with; nothing has been written.
      FloatingPointError: a loss or the state is not finite; the last good checkpoint stays.
      OSError: a file cannot be written; the last good checkpoint stays.
      Interrupted: SIGTERM or SIGINT came to one of the hosts; everything is saved.
    """
    settings.check(config)
    files.check(config, workdir)
    if (finished := files.read_summary(workdir)) is not None:
        hosts.say(f"{workdir} holds a finished run: top-1 {finished['last']['top1']:.2f}")
        return finished
    with stop_signal() as stop, files.disk_errors(workdir), claim(workdir), hosts.together():
        return run(config, workdir, stop)


def run(config: ConfigDict, workdir: Path, stop: StopSignal) -> dict[str, Any]:
    """`train_and_evaluate` in a workdir that is this run's own."""
    program = make_program(config)
    parallel, feed, spec = program.parallel, program.feed, program.feed.spec
    steps_per_epoch = feed.steps_per_epoch
    about = {
        "student": describe(config.student, program.student, program.like.params["student"], spec),
        "method_params": count_params(program.like.params["method"]),
    }
    known = {"data": fingerprint.of_data(feed.source), "versions": files.versions()}
    hosts.check_same(
        json.dumps(known["data"]),
        f"the hosts read different data as {spec.name}; give all of them the same files",
    )
    teacher_variables = ()
    if program.teacher:
        teacher_variables, about["teacher"], known["teacher"] = prepare_teacher(
            config, program, known["data"], workdir
        )
    stop.check()

    if not (workdir / "config.json").exists():  # it says whose the checkpoints are
        files.write_json(workdir / "config.json", config.to_dict())
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    step, total = checkpoints.latest(), config.epochs * steps_per_epoch
    hosts.check_same(str(step), f"hosts see different checkpoints in {workdir}; is it shared?")
    if step is None:
        step, meta = 0, {"sums": {}, "history": [], "rows": [], "seconds": 0.0}
        state = program.fresh()
    else:
        state, meta = checkpoints.restore(step, program.like, parallel.replicated)
        fingerprint.check_resumed(workdir, meta, known, step, int(state.step), total)
        hosts.say(f"going on from step {step}")
    files.write_json(workdir / "config.json", config.to_dict())  # where it runs may be new
    sums, history, began = meta["sums"], meta["history"], time.monotonic() - meta["seconds"]
    rows = meta["rows"] if "rows" in meta else read_rows(workdir, step)

    evaluate = make_evaluate(program.student, feed, parallel)
    seed = np.int32(config.seed)
    log = Log(workdir, rows)
    progress = Progress(log, config.student, total, step, config.batch_size)
    pending: deque = deque()
    waiting = Waiting()
    stopping = False

    def drain(left: int) -> None:
        """Takes in what all but the `left` newest dispatches gave; raises at a NaN."""
        nonlocal sums, stopping
        while len(pending) > left:
            at, part, last, asked = jax.device_get(pending.popleft())
            stopping |= bool(asked)
            check_finite(last, checkpoints)
            sums = {k: np.asarray(sums.get(k, 0.0)) + v.astype(np.float64) for k, v in part.items()}
            progress.advance(at, float(last["loss"]))

    def save() -> None:
        drain(0)
        partial = {key: np.asarray(value).tolist() for key, value in sums.items()}
        meta = {"sums": partial, "history": history, "rows": rows, "fingerprint": known}
        checkpoints.save(step, state, meta | {"seconds": time.monotonic() - began})

    def pause(due: bool) -> None:
        """Saves if it is time to; saves and stops if one of the hosts was asked to stop."""
        asked = stopping or (stop.asked and jax.process_count() == 1)
        if due or asked:
            save()
        if asked and step < total:
            raise Interrupted(f"saved at step {step} of {total}")

    every = config.checkpoint
    with (
        closing(checkpoints),
        closing(log),
        closing(progress),
        stop.hold(),
    ):
        for epoch in range(step // steps_per_epoch, config.epochs):
            rest = feed.train(epoch, step % steps_per_epoch, program.steps_per_dispatch)
            for stack, start, end in waiting.watch(rest):
                state, part, last = program.dispatch(
                    state, teacher_variables, feed.train_data, stack, start, end, seed
                )
                before, step = step, step + end - start
                pending.append((step, part, last, parallel.any_host(stop.asked)))
                drain(IN_FLIGHT - 1)
                due = every.every_steps and step // every.every_steps > before // every.every_steps
                if step % steps_per_epoch:  # the end of an epoch is saved with its test result
                    pause(due)
            drain(0)
            test = evaluate(student_variables(state))
            history.append({"epoch": epoch + 1} | test)
            means = {key: value / steps_per_epoch for key, value in sums.items()}
            files.write_arrays(workdir, epoch, means)
            row = log_row(step, epoch, means, test) | {"lr": float(program.lr(step - 1))}
            row |= {"images_per_second": progress.images_per_second}
            row |= {"waiting_for_data": waiting.share}
            rows.append(row)
            log.epoch(row)
            if advice := waiting.advice():
                log.say(advice)
            sums = {}
            pause(due or (epoch + 1) % every.every_epochs == 0 or epoch + 1 == config.epochs)

    with stop.hold():
        variables = student_variables(state)
        meta = export_meta(config, program, history) | {"fingerprint": known}
        save_export(workdir / "export", variables, meta)
        if program.teacher and jax.process_index() == 0:
            networks = jax.device_get((teacher_variables, variables))
            draw(workdir / "attention.png", config, program, *networks)
        result = about | {
            "data": spec.name,
            "class_names": spec.class_names,
            "last": history[-1],
            "best": max(history, key=lambda row: row["top1"]),
            "seconds": time.monotonic() - began,
            "images_per_second": progress.images_per_second,
            "hardware": files.hardware(),
            "versions": files.versions(),
            "fingerprint": known,
            "config": config.to_dict(),
        }
        files.write_json(workdir / "summary.json", result)
    return result


def prepare_teacher(
    config: ConfigDict, program: Program, data: Facts, workdir: Path
) -> tuple[PyTree, dict[str, Any], Facts]:
    """The teacher's replicated variables, numbers and fingerprint; measured before it teaches.

    Raises:
      ValueError: it was trained for other classes, or is not as good as is said of it.
    """
    network, feed, spec = program.teacher, program.feed, program.feed.spec
    variables = teacher.load(config, network, spec, workdir, train_and_evaluate)
    said = teacher.check_export(config, workdir, data)
    placed = program.parallel.place(variables)
    top1 = make_evaluate(network, feed, program.parallel)(placed)["top1"]
    hosts.say(f"teacher {config.teacher.model}: top-1 {top1:.2f} on {spec.name}'s test set")
    teacher.check_top1(config, top1, said, spec.num_test)
    if warning := teacher.chance_warning(top1, spec):
        hosts.say(warning)
    about = describe(config.teacher.model, network, variables["params"], spec) | {"top1": top1}
    own = fingerprint.of_teacher(config.teacher.model, network.mean, network.std, variables)
    own |= {"top1": top1, "class_names": said.get("class_names")}
    return placed, about, own


def log_row(step: int, epoch: int, means: dict[str, np.ndarray], test: dict[str, float]) -> dict:
    """One epoch for the log: losses as they are, accuracies in percent."""
    row = {f"train/{key}": float(mean) for key, mean in means.items() if not mean.ndim}
    row["train/top1"] *= 100
    return {"step": step, "epoch": epoch + 1} | row | {f"test/{k}": v for k, v in test.items()}


def describe(name: str, network, params: PyTree, spec) -> dict[str, Any]:
    """A network in numbers."""
    macs = count_macs(network.module, spec.image_shape)
    return {"model": name, "params": count_params(params), "macs": macs}


def export_meta(config: ConfigDict, program: Program, history: list[dict]) -> dict[str, Any]:
    """What another program needs to use the exported student."""
    spec = program.feed.spec
    return {
        "model": config.student,
        "num_classes": spec.num_classes,
        "class_names": spec.class_names,
        "data": spec.name,
        "image_shape": spec.image_shape,
        "mean": program.student.mean,
        "std": program.student.std,
        "preparation": preparation.describe(program.feed.source),
        "top1": history[-1]["top1"],
    }


def draw(
    path: Path, config: ConfigDict, program: Program, teacher_variables: PyTree, variables: PyTree
) -> None:
    """Where teacher and student are active on a few test images; a failure is said, no more."""
    try:
        _draw(path, config, program, teacher_variables, variables)
    except Exception as error:  # drawing and fonts fail in many ways; the run is whole without
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split())
        hosts.say(f"{path} could not be drawn ({type(error).__name__}: {reason}); all else is done")


def _draw(
    path: Path, config: ConfigDict, program: Program, teacher_variables: PyTree, variables: PyTree
) -> None:
    image, label = program.feed.sample(PICTURED)
    attention = picture.attention
    maps = {
        f"teacher {config.teacher.model}": attention(program.teacher, teacher_variables, image),
        f"student {config.student}": attention(program.student, variables, image),
    }
    names = [program.feed.spec.class_names[k] for k in label]
    picture.write_attention(path, image, names, maps)


def check_finite(last: dict[str, np.ndarray], checkpoints: Checkpoints) -> None:
    """Raises FloatingPointError naming the step and the terms if its loss is not finite."""
    if np.isfinite(last["loss"]):
        return
    bad = [key for key, value in last.items() if not np.all(np.isfinite(value)) and key != "loss"]
    raise checkpoints.diverged(
        f"the loss is not finite at step {int(last['step'])} (in: {', '.join(bad) or 'loss'})"
    )
