"""Students that are trained together are, each, the student alone, and outlive each other."""

import contextlib
import dataclasses
import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import exported, saved_steps, small_config, write_npz

from atkd_jax import methods
from atkd_jax.errors import UserError
from atkd_jax.methods.base import LossOut, Method
from atkd_jax.runtime.preemption import Interrupted
from atkd_jax.training import loop
from atkd_jax.training.loop import train_and_evaluate, train_students

STEPS = 4
counts = pytest.mark.parametrize("count", [1, 3])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with images and a teacher's export."""
    folder = tmp_path_factory.mktemp("teacher")
    config = small_config(write_npz(folder / "images.npz"))
    config.batch_size, config.epochs = 96 // STEPS, 1
    train_and_evaluate(config, folder)
    return folder


def student(teacher, method, seed=0):
    """One epoch of four steps."""
    config = small_config(teacher / "images.npz", method)
    config.batch_size, config.epochs, config.seed = 96 // STEPS, 1, seed
    if config.terms:
        config.teacher.weights = str(teacher / "export")
    return config


def folders(tmp_path, count):
    return [tmp_path / str(i) for i in range(count)]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_student_trained_with_others_is_the_student_alone(teacher, tmp_path):
    """Of four, one learns without the teacher that the others share."""
    configs = [student(teacher, "kd"), student(teacher, "rtk"), student(teacher, "kd", seed=1)]
    configs.append(student(teacher, "kd"))
    configs[3].terms = {}
    workdirs = folders(tmp_path, 4)
    train_students(configs, workdirs)

    for i in (0, 1, 3):
        config, workdir = configs[i], workdirs[i]
        alone = tmp_path / f"alone-{workdir.name}"
        result = train_and_evaluate(config, alone)
        chex.assert_trees_all_close(exported(workdir), exported(alone), rtol=0, atol=1e-5)
        ours = json.loads((workdir / "summary.json").read_text())
        assert ours["company"] == 4
        assert ours.keys() == result.keys() | {"company"}
        assert ours["last"]["loss"] == pytest.approx(result["last"]["loss"], abs=1e-3)
        assert rows(workdir)[0].keys() == rows(alone)[0].keys()
        assert ("teacher" in ours) == (workdir / "attention.png").exists() == bool(config.terms)
    for folder in (workdirs[1], tmp_path / "alone-1"):
        attention = np.load(folder / "epochs" / "0001.npz")["rtk.attention"]
        assert attention.shape == (3, 3)  # the student's blocks x the teacher's
        np.testing.assert_allclose(attention.sum(axis=0), 1, rtol=1e-5)
        assert np.ptp(attention) > 0
    assert not (workdirs[0] / "epochs").exists()  # kd has no such metric
    assert not list(tmp_path.glob("together-*"))

    train_students([configs[2]], [tmp_path / "alone-seed"], data_seed=0)
    seed = exported(workdirs[2])
    chex.assert_trees_all_close(seed, exported(tmp_path / "alone-seed"), rtol=0, atol=1e-5)
    for other in workdirs[:2]:
        far = jax.tree.map(lambda x, y: np.abs(x - y).max(), seed, exported(other))
        assert max(jax.tree.leaves(far)) > 1e-2


@pytest.mark.slow
@counts
def test_a_stop_after_an_epoch_keeps_its_test_results(count, teacher, tmp_path, monkeypatch):
    configs = [student(teacher, "none", seed) for seed in range(count)]
    for config in configs:
        config.epochs = 2
    workdirs = folders(tmp_path, count)
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 4 of 8"):
        patched.setattr(loop.Log, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_students(configs, workdirs)
    train_students(configs, workdirs)
    for workdir in workdirs:
        assert [row["epoch"] for row in rows(workdir)] == [1, 2]


@dataclasses.dataclass(frozen=True)
class Trip(Method):
    """A loss that is no number from an optimiser step on."""

    at: int = 2

    def loss(self, extras, t, s, batch, ctx):
        return LossOut(jnp.where(ctx.step >= self.at, jnp.nan, 0.0))


@pytest.fixture
def trip(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "trip", Trip)
    return dict(trip=dict(weight=1.0, at=2))


@pytest.mark.slow
@counts
def test_a_loss_that_is_not_finite_drops_one_student(count, teacher, tmp_path, trip, capsys):
    configs = [student(teacher, "kd") for _ in range(count)]
    configs[0].terms = trip
    for config in configs:
        config.checkpoint.every_steps, config.epochs = 1, 2
    if count > 1:
        configs[1].terms.kd.temperature = 2.0
    workdirs = folders(tmp_path, count)
    complaint = r"the loss is not finite at step 2 \(in: trip\);"
    complaint += " the checkpoint of step 2 is kept" if count == 1 else " lower optimizer.lr"
    with pytest.raises(FloatingPointError, match=complaint) as caught:
        train_students(configs, workdirs)
    assert str(caught.value).startswith("trip, seed 0: " if count > 1 else "the loss")
    assert not (workdirs[0] / "summary.json").exists()
    if count == 1:
        assert saved_steps(workdirs[0]) == [1, 2]
        return
    assert "trip, seed 0 is dropped: the loss" in capsys.readouterr().out
    for config, workdir in zip(configs[1:], workdirs[1:], strict=True):
        assert [row["step"] for row in rows(workdir)] == [STEPS, 2 * STEPS]
        alone = tmp_path / f"alone-{workdir.name}"
        train_and_evaluate(config, alone)
        chex.assert_trees_all_close(exported(workdir), exported(alone), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_remembers_who_was_dropped(teacher, tmp_path, trip, monkeypatch):
    configs = [student(teacher, "kd"), student(teacher, "kd", seed=1)]
    configs[0].terms, workdirs = trip, folders(tmp_path, 2)
    for config in configs:
        config.epochs = 2
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 4 of 8"):
        patched.setattr(loop.Log, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_students(configs, workdirs)
    with pytest.raises(
        FloatingPointError, match=r"^trip, seed 0: the loss is not finite in steps 0 to 3 "
    ):
        train_students(configs, workdirs)
    assert not (workdirs[0] / "summary.json").exists()
    assert [row["epoch"] for row in rows(workdirs[1])] == [1, 2]


@pytest.mark.slow
def test_epochs_without_a_test_are_averaged_into_the_next_row(teacher, tmp_path, monkeypatch):
    """Also if the run is interrupted between two tests."""
    config = student(teacher, "kd")
    config.epochs = 3
    train_and_evaluate(config, tmp_path / "every")
    config.test_every_epochs = 2
    take_steps = loop.Students.take_steps

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return take_steps(*args)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 4 of 12"):
        patched.setattr(loop.Students, "take_steps", interrupted)
        train_and_evaluate(config, tmp_path / "second")
    result = train_and_evaluate(config, tmp_path / "second")
    chex.assert_trees_all_equal(exported(tmp_path / "every"), exported(tmp_path / "second"))
    every, second = rows(tmp_path / "every"), rows(tmp_path / "second")
    assert [row["epoch"] for row in second] == [2, 3]
    assert result["last"]["epoch"] == 3
    for key in ("train/loss", "train/kd"):
        first, other, last = (row[key] for row in every)
        expected = [(first + other) / 2, last]
        np.testing.assert_allclose([row[key] for row in second], expected, rtol=1e-6)
    assert [row["test/top1"] for row in second] == [row["test/top1"] for row in every[1:]]


@pytest.mark.slow
def test_a_run_keeps_its_data_seed(teacher, tmp_path, monkeypatch):
    config = student(teacher, "none")
    config.epochs = 2
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(loop.Log, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_students([config], [tmp_path / "run"], data_seed=5)
    with pytest.raises(UserError, match="began with data_seed 5, not 0"):
        train_students([config], [tmp_path / "run"])


@pytest.mark.slow
@counts
def test_checkpoints_come_every_n_steps(count, teacher, tmp_path, monkeypatch):
    configs = [student(teacher, "none", seed) for seed in range(count)]
    for config in configs:
        config.checkpoint.update(every_steps=2, keep=10)
    kept = []
    save = loop.Checkpoints.save

    def noted(self, step, tree, meta):
        save(self, step, tree, meta)
        kept.append(step)

    monkeypatch.setattr(loop.Checkpoints, "save", noted)
    train_students(configs, folders(tmp_path, count))
    assert kept == [2, 4]


@pytest.mark.slow
def test_students_that_are_done_are_not_trained_again(teacher, tmp_path, capsys):
    configs, workdirs = [student(teacher, "none", seed) for seed in range(2)], folders(tmp_path, 2)
    (tmp_path / "company-0123456789ab").mkdir()
    train_students(configs, workdirs)
    assert "company-0123456789ab may hold earlier progress" in capsys.readouterr().out
    done = (workdirs[0] / "summary.json").read_bytes()
    (workdirs[1] / "summary.json").unlink()
    first, second = train_students(configs, workdirs)
    assert (workdirs[0] / "summary.json").read_bytes() == done
    assert first["company"] == 2 and second["company"] == 1


def test_students_that_do_not_fit_together_are_told_why(tmp_path):
    one, other = (small_config(tmp_path / "images.npz", "kd") for _ in range(2))
    other.optimizer.lr, other.seed = 0.5, 3
    with pytest.raises(UserError, match="differ in optimizer.lr: train them apart"):
        loop.check_students([one, other])
    other = one.copy_and_resolve_references()
    one.accumulate = other.accumulate = 2
    with pytest.raises(UserError, match="accumulate splits the batch"):
        loop.check_students([one, other])
    one.accumulate = 1
    with pytest.raises(UserError, match="given twice"):
        train_students([one, one], [tmp_path / "run"] * 2)
    assert not any(tmp_path.iterdir())


@counts
def test_two_runs_do_not_share_a_folder(count, teacher, tmp_path):
    configs = [student(teacher, "none", seed) for seed in range(count)]
    workdirs = folders(tmp_path, count)
    with contextlib.ExitStack() as held:
        held.enter_context(loop.lock(workdirs[-1]))
        with pytest.raises(ValueError, match=f"{workdirs[-1]} is in use by process {os.getpid()}"):
            train_students(configs, workdirs)
    assert not any(path.name.startswith("together") for path in tmp_path.iterdir())
