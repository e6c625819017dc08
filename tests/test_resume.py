"""Nothing is lost when a run is killed: the resumed run ends in the same bits."""

import json
import os
import random
import signal
import time

import pytest
from runs import (
    command,
    log_without_times,
    run,
    same_bits,
    saved_state,
    saved_steps,
    start,
)

STEPS = 24
OVERRIDES = ("--config.checkpoint.every_steps=5", "--config.data.augment.flip=True")


@pytest.fixture(scope="module")
def uninterrupted(npz, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = started(npz, workdir)
    assert done.wait() == 0, done.output
    assert saved_steps(workdir)[-1] == STEPS
    return workdir


def started(npz, workdir):
    arguments = command(npz, workdir, *OVERRIDES, method="at_kd")
    return start(arguments, workdir.with_suffix(".log"))


@pytest.mark.parametrize("training", ["teacher", "student"])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(training, npz, uninterrupted, tmp_path):
    workdir = tmp_path / "killed"
    process = started(npz, workdir)
    process.wait_until(
        lambda: saved_steps(workdir / "teacher" if training == "teacher" else workdir)
    )
    time.sleep(random.random() / 10)
    process.send(signal.SIGKILL)
    process.wait()
    process = started(npz, workdir)
    assert process.wait() == 0, process.output
    assert same_bits(saved_state(uninterrupted), saved_state(workdir))
    assert log_without_times(uninterrupted) == log_without_times(workdir)


def test_sigterm_saves_and_says_how_to_go_on(npz, uninterrupted, tmp_path):
    workdir = tmp_path / "stopped"
    process = started(npz, workdir)
    process.wait_until(lambda: saved_steps(workdir))
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "the same command goes on" in process.output or "top-1" in process.output
    process = started(npz, workdir)
    assert process.wait() == 0, process.output
    assert same_bits(saved_state(uninterrupted), saved_state(workdir))


def test_a_finished_run_is_not_run_again(npz, uninterrupted):
    before = sorted((p, os.path.getmtime(p)) for p in uninterrupted.rglob("*"))
    done = run(npz, uninterrupted, *OVERRIDES, method="at_kd")
    assert done.returncode == 0 and "holds a finished run" in done.stdout
    assert before == sorted((p, os.path.getmtime(p)) for p in uninterrupted.rglob("*"))


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
