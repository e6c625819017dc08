"""Training from start to end: setup, teacher, restore, loop, finish; for one student or several.

Students that are trained together share everything but their methods and seeds, and the teacher's
forward pass runs once per batch. The order of the images, their augmentation and the random numbers
of methods follow the data seed, which is the first student's; a student's own seed determines its
initial parameters and those of its method. Therefore

- K methods with one seed each give the same result as when trained alone (up to rounding; a test
  holds them to 1e-5 after a few steps);
- of K seeds, the first gives the same result as alone; another is reproduced by training it alone
  with that data seed. Their spread is due to initialisation only.

Teachers are students without terms.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax.data.prefetch import DataWait
from atkd_jax.errors import UserError
from atkd_jax.runtime import fingerprint, hosts, run_files
from atkd_jax.runtime.checkpoint import Checkpoints, save_export
from atkd_jax.runtime.lock import lock
from atkd_jax.runtime.logs import Log, Progress
from atkd_jax.runtime.preemption import Interrupted, StopSignal, stop_signal
from atkd_jax.training import attention_plot, from_config, settings, summary, teachers
from atkd_jax.training.evaluate import make_evaluate
from atkd_jax.training.loader import make_loader
from atkd_jax.training.setup import make_parallel, make_setup, steps_per_call
from atkd_jax.training.step import check_shared_batch, student_variables
from atkd_jax.training.students import Student, Students
from atkd_jax.types import PyTree

IN_FLIGHT = 2  # calls; with more, simulated devices dead-lock and a NaN is noticed late
STUDENTS_MAY_DIFFER = {"terms": {}, "ce_weight": 1.0, "seed": 0}


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains a student, or resumes the run in `workdir`.

    Writes config.json, metrics.jsonl, tensorboard/, checkpoints/, epochs/ (metrics that are
    arrays), export/ (the trained network), attention.png and summary.json, whose content is
    returned. A teacher without weights is trained first, in `workdir/teacher`.

    Raises:
      UserError: the configuration, the data, the teacher or the workdir does not fit, or differs
        from that of the interrupted run; nothing has been written.
      FloatingPointError: a loss or the state is not finite; the last good checkpoint is kept.
      OSError: a file cannot be written; the last good checkpoint is kept.
      Interrupted: one of the hosts received SIGTERM or SIGINT; everything is saved.
    """
    [result] = train_students([config], [workdir])
    return result


def train_students(
    configs: Sequence[ConfigDict], workdirs: Sequence[Path], data_seed: int | None = None
) -> list[dict[str, Any]]:
    """Trains students together under one teacher, or resumes them.

    Every workdir receives the files of `train_and_evaluate`, except that checkpoints, and a teacher
    that is trained first, are kept in a folder beside the first workdir until all students are
    done. Times in summary.json are those of all students divided by their number (`company`).

    A student whose loss is not finite is dropped, and the others continue.

    Args:
      data_seed: seed of the images' order and augmentation; by default the first student's.

    Raises:
      UserError, OSError, Interrupted: as `train_and_evaluate`; or the students differ in more than
        methods and seeds.
      FloatingPointError: a loss or the state of students is not finite; the others are done.
    """
    for config, workdir in zip(configs, workdirs, strict=True):
        settings.check(config)
        run_files.check(config, workdir)
    check_students(configs)
    if len(set(workdirs)) < len(workdirs):
        raise UserError("a workdir is given twice; every student needs one of its own")
    data_seed = configs[0].seed if data_seed is None else data_seed
    alone = len(configs) == 1
    home = workdirs[0] if alone else shared_folder(configs, workdirs[0], data_seed)
    failure = None
    if (results := _finished(workdirs)) is None:
        before = [w / "checkpoints" for w in workdirs] + [*home.parent.glob("company-*")]
        if not alone and not home.exists() and (old := [path for path in before if path.exists()]):
            hosts.log_once(
                f"warning: {old[0]} may hold earlier progress of these students; it is not used"
            )
        with contextlib.ExitStack() as held:
            stop = held.enter_context(stop_signal())
            held.enter_context(run_files.disk_errors(home))
            for folder in dict.fromkeys((home, *workdirs)):
                held.enter_context(lock(folder))
            held.enter_context(hosts.abort_on_lost_host())
            if (results := _finished(workdirs)) is None:
                results, failure = _train(configs, workdirs, home, data_seed, stop)
    if not alone and jax.process_index() == 0:
        shutil.rmtree(home, ignore_errors=True)
    if failure is not None:
        raise failure
    return results


def _finished(workdirs: Sequence[Path]) -> list[dict[str, Any]] | None:
    """The summaries, if all students are done."""
    summaries = [run_files.read_summary(workdir) for workdir in workdirs]
    results = [summary for summary in summaries if summary is not None]
    if len(results) < len(workdirs):
        return None
    for workdir, result in zip(workdirs, results, strict=True):
        top1 = result["last"]["top1"]
        hosts.log_once(f"{workdir} holds a finished run: top-1 {top1:.2f}")
    return results


def check_students(configs: Sequence[ConfigDict]) -> None:
    """Raises UserError if students cannot share a teacher and its images."""
    first, *others = (run_files.fixed(c.to_dict() | STUDENTS_MAY_DIFFER) for c in configs)
    for other in others:
        if keys := [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]:
            raise UserError(
                "students that are trained together share all but methods and seeds; these differ"
                f" in {', '.join(sorted(keys))}: train them apart"
            )
    check_shared_batch(len(configs), configs[0].accumulate)


def shared_folder(configs: Sequence[ConfigDict], workdir: Path, data_seed: int) -> Path:
    """The folder for checkpoints of students that are trained together, named by what they are."""
    text = json.dumps([data_seed, *(run_files.fixed(c.to_dict()) for c in configs)], sort_keys=True)
    return workdir.parent / f"together-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _train(
    configs: Sequence[ConfigDict],
    workdirs: Sequence[Path],
    home: Path,
    data_seed: int,
    stop: StopSignal,
) -> tuple[list[dict[str, Any]], FloatingPointError | None]:
    """`train_students` in locked folders; checkpoints are kept in `home`.

    Returns:
      the summaries, {} for dropped students; and the error of dropped students, if there are any.
    """
    # Setup: devices, data, and a step for every student.
    lead = configs[0]
    parallel = make_parallel(lead)
    loader = make_loader(from_config.source(lead, data_seed), parallel, lead.batch_size, data_seed)
    info, steps_per_epoch = loader.info, loader.steps_per_epoch
    total = lead.epochs * steps_per_epoch
    students = [
        Student(config, workdir, make_setup(config, parallel, info, steps_per_epoch))
        for config, workdir in zip(configs, workdirs, strict=True)
    ]
    known = {"data": fingerprint.of_data(loader.source), "versions": run_files.versions()}
    hosts.assert_equal_across_hosts(
        json.dumps(known["data"]),
        f"the hosts read different data as {info.name}; give all of them the same files",
    )

    # Teacher: loaded, or trained by this function, and evaluated.
    teacher = next((s.setup.step.teacher for s in students if s.setup.step.teacher), None)
    teacher_variables: PyTree = ()
    about_teacher: dict[str, Any] = {}
    if teacher:
        teacher_variables, about_teacher, known["teacher"] = teachers.prepare(
            lead, teacher, loader, parallel, known["data"], home, train_and_evaluate
        )
    stop.check()

    # Restore, or initialise.
    for student in students:
        if not (student.workdir / "config.json").exists():  # identifies the checkpoints
            run_files.write_json(student.workdir / "config.json", student.config.to_dict())
    checkpoints = Checkpoints(home / "checkpoints", lead.checkpoint.keep)
    group = Students(students, parallel, loader, checkpoints)
    step, seconds = group.restore_or_initialise(home, known, total, data_seed)
    for student in group.active:  # keys that may change on resume
        run_files.write_json(student.workdir / "config.json", student.config.to_dict())

    began = time.monotonic() - seconds
    evaluate = make_evaluate(students[0].setup.step.student, loader, parallel)
    logs = {s.workdir: Log(s.workdir, s.rows, s.name if students[1:] else "") for s in group.active}
    log = logs[group.active[0].workdir]
    progress = Progress(log, lead.student, total, step, lead.batch_size)
    data_wait = DataWait()
    lr = jax.jit(students[0].setup.lr)  # all students'
    per_call = steps_per_call(lead, parallel, loader.in_memory)
    every, seed = lead.checkpoint, np.int32(data_seed)

    def save_if_due(due: bool) -> None:
        """Saves if due; saves and stops if one of the hosts received a signal."""
        asked = group.asked_to_stop or (stop.asked and jax.process_count() == 1)
        if due or asked:
            group.collect_metrics(0, progress)
            meta = {"fingerprint": known, "data_seed": data_seed}
            group.save(step, meta | {"seconds": time.monotonic() - began})
        if asked and step < total:
            raise Interrupted(f"saved at step {step} of {total}")

    # Loop.
    with contextlib.ExitStack() as opened:
        for close in (checkpoints.close, *(log.close for log in logs.values()), progress.close):
            opened.callback(close)
        opened.enter_context(stop.hold())
        for epoch in range(step // steps_per_epoch, lead.epochs):
            rest = loader.train(epoch, step % steps_per_epoch, per_call)
            for stack, start, end in data_wait.timed(rest):
                group.take_steps(step, teacher_variables, stack, start, end, seed, stop.asked)
                before, step = step, step + end - start
                group.collect_metrics(IN_FLIGHT - 1, progress)
                due = every.every_steps and step // every.every_steps > before // every.every_steps
                if step % steps_per_epoch:  # the end of an epoch is saved with its test results
                    save_if_due(due)
            group.collect_metrics(0, progress)
            is_last = epoch + 1 == lead.epochs
            is_tested = is_last or (epoch + 1) % lead.test_every_epochs == 0
            for student, test in group.test(evaluate, epoch) if is_tested else ():
                means = student.means(step)
                run_files.write_arrays(student.workdir, epoch, means)
                row = summary.log_row(step, epoch, means, test) | {
                    "lr": float(lr(step - 1)),
                    "images_per_second": progress.images_per_second,
                    "waiting_for_data": data_wait.share,
                }
                student.rows.append(row)
                logs[student.workdir].epoch(row)
            if hint := data_wait.hint():
                log.print(hint)
            save_if_due(due or (epoch + 1) % every.every_epochs == 0 or is_last)

    # Finish: exports, plots and summaries.
    results: dict[Path, dict[str, Any]] = {}
    with stop.hold():
        count = len(group.active)
        speed = {
            "seconds": (time.monotonic() - began) / count,
            "images_per_second": progress.images_per_second * count,
        } | ({"company": count} if students[1:] else {})
        for student, state in group:
            network = student.setup.step.student
            meta = summary.export_meta(student.config, network, loader, student.history)
            meta |= {"fingerprint": known}
            save_export(student.workdir / "export", student_variables(state), meta)
        for student, state in group:  # not between exports, which other hosts wait for
            config, step_of = student.config, student.setup.step
            if step_of.teacher and jax.process_index() == 0:
                networks = {
                    f"teacher {config.teacher.model}": (step_of.teacher, teacher_variables),
                    f"student {config.student}": (step_of.student, student_variables(state)),
                }
                attention_plot.write(student.workdir / "attention.png", loader, networks)
            params = student.setup.abstract_state.params
            result = summary.about_student(config, step_of.student, params, info)
            result |= {"teacher": about_teacher} if step_of.teacher else {}
            result |= summary.results(config, info, student.history)
            results[student.workdir] = result | speed | {"fingerprint": known}
            run_files.write_json(student.workdir / "summary.json", results[student.workdir])
    for student in students:  # some may have been finished before
        results.setdefault(student.workdir, run_files.read_summary(student.workdir) or {})
    return [results[student.workdir] for student in students], group.failure()
