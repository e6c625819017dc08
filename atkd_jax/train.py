"""A run, top to bottom: build, teacher, restore, loop. Without terms, this trains teachers."""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import build, picture, teacher
from atkd_jax import workdir as files
from atkd_jax.checkpoint import Checkpoints, save_export
from atkd_jax.evaluate import make_evaluate
from atkd_jax.feed import make_feed
from atkd_jax.logs import Log, Progress
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.parallel import Parallel
from atkd_jax.signals import Interrupted, stop_signal
from atkd_jax.step import init_state, make_dispatch, make_train_step
from atkd_jax.types import PyTree

IN_FLIGHT = 2  # dispatches; more let simulated devices dead-lock and tell of a NaN too late
PICTURED = 6  # test images in attention.png


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains a student as `config` says, or goes on with the run that `workdir` holds.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, epochs/ (metrics that are
    arrays), export/ (the trained network), attention.png and summary.json, whose content is
    returned. A teacher without weights is trained first, by the same code, in `workdir/teacher`.

    Raises:
      ValueError: the configuration, the data, the teacher or the workdir does not fit; nothing has
        been written.
      FloatingPointError: a loss is not finite; the last good checkpoint stays.
      Interrupted: SIGTERM or SIGINT came; everything is saved.
    """
    files.check(config, workdir)
    if (finished := files.read_summary(workdir)) is not None:
        print(f"{workdir} holds a finished run: top-1 {finished['last']['top1']:.2f}")
        return finished
    parallel = Parallel(config.parallel)
    parallel.check_batch(config.batch_size)
    feed = make_feed(build.source(config), parallel, config.batch_size, config.seed)
    spec, steps_per_epoch = feed.spec, feed.steps_per_epoch
    student = build.network(config, config.student, spec, parallel.axis_name)
    objective = build.objective(config, steps_per_epoch, parallel.axis_name)
    tx, aug = build.optimizer(config, steps_per_epoch), build.augment(config)
    master = teacher.describe(config, spec) if objective.terms else None
    seed = np.int32(config.seed)

    def fresh():
        key = jax.random.key(seed)
        return init_state(student, master, objective, tx, spec, config.batch_size, key)

    like = jax.eval_shape(fresh)  # complaints about taps and shapes come from here
    about = {"student": describe(config.student, student, like.params["student"], spec)}
    teacher_variables = ()
    if master:
        host = teacher.load(config, master, spec, workdir, train_and_evaluate)
        teacher_variables = parallel.place(host)
        top1 = make_evaluate(master, feed, parallel)(teacher_variables)["top1"]
        print(f"teacher {config.teacher.model}: top-1 {top1:.2f} on the test set of {spec.name}")
        teacher.check_top1(config, top1)
        about["teacher"] = describe(config.teacher.model, master, host["params"], spec)
        about["teacher"]["top1"] = top1

    files.write_json(workdir / "config.json", config.to_dict())
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    if (step := checkpoints.latest()) is None:
        step, meta = 0, {"sums": {}, "history": [], "seconds": 0.0}
        state = parallel.init(fresh)
    else:
        state, meta = checkpoints.restore(step, like, parallel.replicated)
        print(f"going on from step {step}")
    sums, history, began = meta["sums"], meta["history"], time.monotonic() - meta["seconds"]

    per_dispatch = config.steps_per_dispatch or parallel.steps_per_dispatch
    dispatch = parallel.spmd(
        make_dispatch(
            make_train_step(student, master, objective, tx, aug, parallel.axis),
            feed.fetch,
            in_loop=per_dispatch > 1,
        ),
        spread=(3,),
        donate=(0,),
    )
    evaluate = make_evaluate(student, feed, parallel)
    lr = build.schedule(config, steps_per_epoch)
    total = config.epochs * steps_per_epoch
    log = Log(workdir, step)
    progress = Progress(log, config.student, total, step, config.batch_size)
    pending: deque = deque()

    def drain(left: int) -> None:
        """Adds up the metrics of all but the `left` newest dispatches; stops at a NaN."""
        nonlocal sums
        while len(pending) > left:
            at, part, last = jax.device_get(pending.popleft())
            check_finite(last, checkpoints)
            sums = {k: np.asarray(sums.get(k, 0.0)) + v.astype(np.float64) for k, v in part.items()}
            progress.advance(at, float(last["loss"]))

    def save() -> None:
        drain(0)
        partial = {key: np.asarray(value).tolist() for key, value in sums.items()}
        seconds = time.monotonic() - began
        meta = {"sums": partial, "history": history, "seconds": seconds}
        checkpoints.save(step, state, meta)

    with closing(checkpoints), closing(log), closing(progress), stop_signal() as stop:
        for epoch in range(step // steps_per_epoch, config.epochs):
            for stack, start, end in feed.train(epoch, step % steps_per_epoch, per_dispatch):
                state, part, last = dispatch(
                    state, teacher_variables, feed.train_data, stack, start, end, seed
                )
                before, step = step, step + end - start
                pending.append((step, part, last))
                drain(IN_FLIGHT - 1)
                every = config.checkpoint.every_steps
                if stop.asked or (every and step // every > before // every):
                    save()
                if stop.asked:
                    raise Interrupted(f"saved at step {step} of {total}")
            drain(0)
            test = evaluate(student_variables(state))
            history.append({"epoch": epoch + 1} | test)
            means = {key: value / steps_per_epoch for key, value in sums.items()}
            files.write_arrays(workdir, epoch, means)
            log.epoch(
                step,
                epoch + 1,
                {f"train/{key}": float(mean) for key, mean in means.items() if not mean.ndim}
                | {f"test/{key}": value for key, value in test.items()}
                | {"lr": float(lr(step - 1)), "images_per_second": progress.images_per_second},
            )
            sums = {}
            if (epoch + 1) % config.checkpoint.every_epochs == 0 or epoch + 1 == config.epochs:
                save()

    seconds = time.monotonic() - began
    best = max(history, key=lambda row: row["top1"])
    result = {
        **about,
        "data": spec.name,
        "last": history[-1],
        "best": best,
        "seconds": seconds,
        "images_per_second": progress.images_per_second,
        "hardware": files.hardware(),
        "versions": files.versions(),
        "config": config.to_dict(),
    }
    meta = {
        "model": config.student,
        "num_classes": spec.num_classes,
        "class_names": spec.class_names,
        "data": spec.name,
        "mean": student.mean,
        "std": student.std,
        "top1": history[-1]["top1"],
    }
    save_export(workdir / "export", student_variables(state), meta)
    if master:
        image, label = feed.sample(PICTURED)
        maps = {
            f"teacher {config.teacher.model}": picture.attention(master, teacher_variables, image),
            f"student {config.student}": picture.attention(
                student, student_variables(state), image
            ),
        }
        names = [spec.class_names[k] for k in label]
        picture.write_attention(workdir / "attention.png", image, names, maps)
    files.write_json(workdir / "summary.json", result)
    return result


def student_variables(state) -> PyTree:
    """What the student's module takes."""
    return {"params": state.params["student"], "batch_stats": state.batch_stats}


def describe(name: str, network, params: PyTree, spec) -> dict[str, Any]:
    """A network in numbers."""
    macs = count_macs(network.module, spec.image_shape)
    return {"model": name, "params": count_params(params), "macs": macs}


def check_finite(last: dict[str, np.ndarray], checkpoints: Checkpoints) -> None:
    """Raises FloatingPointError naming the step and the terms if its loss is not finite."""
    if np.isfinite(last["loss"]):
        return
    bad = [key for key, value in last.items() if not np.all(np.isfinite(value)) and key != "loss"]
    kept = checkpoints.latest()
    raise FloatingPointError(
        f"the loss is not finite at step {int(last['step'])} (in: {', '.join(bad) or 'loss'});"
        + (f" the checkpoint of step {kept} is kept;" if kept is not None else "")
        + " lower optimizer.lr or the term's weight"
    )
