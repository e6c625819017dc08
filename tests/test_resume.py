"""Nothing is lost when a run is killed: the resumed run ends in the same bits."""

import json
import os
import signal

import pytest
from moments import Moment
from small_runs import (
    STEPWISE,
    command,
    log_without_times,
    run,
    same_bits,
    saved_state,
    saved_steps,
    start,
)

STEPS, TEACHER_STEPS = 24, 12
ALL = STEPS + TEACHER_STEPS
OVERRIDES = (*STEPWISE, "--config.data.augment.flip=True")


@pytest.fixture(scope="module")
def uninterrupted(npz, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = started(npz, workdir)
    assert done.wait() == 0, done.output
    assert saved_steps(workdir)[-1] == STEPS
    return workdir


def started(npz, workdir, prepare=None):
    arguments = command(npz, workdir, *OVERRIDES, method="at_kd")
    return start(arguments, workdir.with_suffix(".log"), prepare=prepare)


@pytest.mark.slow
@pytest.mark.parametrize("training", ["teacher", "student"])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(
    training, npz, uninterrupted, tmp_path, rng
):
    workdir = tmp_path / "killed"
    # From step 7 on: the checkpoint of step 6 waited for the one of step 4 to be whole.
    first, last = (7, TEACHER_STEPS) if training == "teacher" else (7 + TEACHER_STEPS, ALL)
    moment = Moment("step", rng.randint(first, last))
    print(moment)
    process = started(npz, workdir, moment)
    assert process.wait() == -signal.SIGKILL, process.output
    assert saved_steps(workdir / "teacher" if training == "teacher" else workdir)
    process = started(npz, workdir)
    assert process.wait() == 0, process.output
    assert "going on from step" in process.said
    assert same_bits(saved_state(uninterrupted), saved_state(workdir))
    assert log_without_times(uninterrupted) == log_without_times(workdir)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(npz, uninterrupted, tmp_path):
    workdir = tmp_path / "stopped"
    process = started(npz, workdir, Moment("step", TEACHER_STEPS + 9, number=signal.SIGTERM))
    assert process.wait() == 0, process.output
    assert f"stopped: saved at step {saved_steps(workdir)[-1]} of {STEPS}" in process.said
    assert "the same command goes on" in process.said
    process = started(npz, workdir)
    assert process.wait() == 0, process.output
    assert same_bits(saved_state(uninterrupted), saved_state(workdir))


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(npz, uninterrupted):
    before = sorted((p, os.path.getmtime(p)) for p in uninterrupted.rglob("*"))
    done = run(npz, uninterrupted, *OVERRIDES, method="at_kd")
    assert done.returncode == 0 and "holds a finished run" in done.stdout
    assert before == sorted((p, os.path.getmtime(p)) for p in uninterrupted.rglob("*"))


@pytest.mark.slow
def test_what_a_run_leaves_behind(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["config"]["terms"].keys() == {"kd", "at"}
    assert summary["student"]["params"] > 0 and summary["student"]["macs"] > 0
    assert summary["teacher"]["top1"] >= 0 and summary["images_per_second"] > 0
    assert summary["best"]["top1"] >= summary["last"]["top1"]
    assert {"jax", "flax", "optax"} <= summary["versions"].keys()
    rows = log_without_times(uninterrupted)
    assert [row["step"] for row in rows] == [6, 12, 18, 24]
    assert {"train/loss", "train/ce", "train/kd", "train/at", "test/top1"} <= rows[0].keys()
    assert list((uninterrupted / "tensorboard").glob("events*"))
    assert (uninterrupted / "attention.png").stat().st_size > 5000
    assert (uninterrupted / "teacher" / "export" / "meta.json").exists()
