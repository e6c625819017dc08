"""Nothing is lost when a run is killed: the resumed run ends in the same bits."""

import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from runs import command, run, write_npz

STEPS = 24
OVERRIDES = ("--config.checkpoint.every_steps=5", "--config.data.augment.flip=True")


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "noise.npz")


@pytest.fixture(scope="module")
def uninterrupted(npz, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = run(npz, workdir, *OVERRIDES, method="at_kd")
    assert done.returncode == 0, done.stderr
    return workdir


def start(npz, workdir):
    """The run as a process, and a function that waits until a step is in its checkpoints."""
    process = subprocess.Popen(
        command(npz, workdir, *OVERRIDES, method="at_kd"), stdout=subprocess.PIPE, text=True
    )

    def wait_for(step):
        for _ in range(2000):
            saved = workdir.glob("checkpoints/[0-9]*")
            if any(p.name.isdigit() and int(p.name) >= step for p in saved):
                return
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        raise TimeoutError

    return process, wait_for


def final_state(workdir):
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        assert manager.latest_step() == STEPS
        args = ocp.args.Composite(tree=ocp.args.StandardRestore())
        return manager.restore(STEPS, args=args)["tree"]


def same_bits(a, b):
    import jax

    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def log_without_times(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def test_a_killed_and_resumed_run_ends_in_the_same_bits(npz, uninterrupted, tmp_path):
    process, wait_for = start(npz, tmp_path / "killed")
    wait_for(5)
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(npz, tmp_path / "killed", *OVERRIDES, method="at_kd")
    assert done.returncode == 0, done.stderr
    assert same_bits(final_state(uninterrupted), final_state(tmp_path / "killed"))
    assert log_without_times(uninterrupted) == log_without_times(tmp_path / "killed")


def test_sigterm_saves_and_says_how_to_go_on(npz, uninterrupted, tmp_path):
    process, wait_for = start(npz, tmp_path / "stopped")
    wait_for(5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "the same command goes on" in output or "top-1" in output
    done = run(npz, tmp_path / "stopped", *OVERRIDES, method="at_kd")
    assert done.returncode == 0, done.stderr
    assert same_bits(final_state(uninterrupted), final_state(tmp_path / "stopped"))


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
