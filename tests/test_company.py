"""A student in company is the student alone."""

import functools
import json
import os
import signal

import jax
import numpy as np
import pytest
from experiments.company import check_members, train_company
from small_runs import small_config, write_npz

from atkd_jax import data
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.runtime.preemption import Interrupted
from atkd_jax.training import from_config, teachers
from atkd_jax.training.loop import train_and_evaluate
from experiments import company

STEPS = 4


def company_config(tmp_path, method, seed):
    config = small_config(tmp_path / "images.npz", method)
    config.batch_size, config.epochs, config.seed = 96 // STEPS, 1, seed
    config.teacher.weights = str(tmp_path / "teacher" / "export")
    return config


def exported(config, folder):
    source = data.load(config.data.name)
    network = from_config.network(config, config.student, source.info)
    return load_export(folder / "export", teachers.variables_like(network, source.info))


def furthest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.mark.slow
def test_a_student_in_company_is_the_student_alone(tmp_path):
    write_npz(tmp_path / "images.npz")
    make = functools.partial(company_config, tmp_path)
    train_and_evaluate(teachers.teacher_config(make("kd", 0)), tmp_path / "teacher")
    members = [make("kd", 0), make("rtk", 0), make("kd", 1)]
    folders = [tmp_path / str(i) for i in range(3)]
    train_company(members, folders)

    together = [exported(c, f) for c, f in zip(members, folders, strict=True)]
    for i, method in enumerate(("kd", "rtk")):
        alone = tmp_path / f"alone-{method}"
        result = train_and_evaluate(make(method, 0), alone)
        assert furthest(together[i], exported(members[i], alone)) < 1e-5
        ours = json.loads((folders[i] / "summary.json").read_text())
        assert ours["company"] == 3
        assert ours.keys() == result.keys() | {"company"}
        assert ours["last"]["loss"] == pytest.approx(result["last"]["loss"], abs=1e-3)
    for folder in (folders[1], tmp_path / "alone-rtk"):
        attention = np.load(folder / "epochs" / "0001.npz")["rtk.attention"]
        assert attention.shape == (3, 3)  # the student's blocks x the teacher's
        np.testing.assert_allclose(attention.sum(axis=0), 1, rtol=1e-5)
        assert np.ptp(attention) > 0
    assert not (folders[0] / "epochs").exists()  # kd has no such metric
    train_company([make("kd", 1)], [tmp_path / "alone-seed"], data_seed=0)
    assert furthest(together[2], exported(members[2], tmp_path / "alone-seed")) < 1e-5
    assert furthest(together[0], together[2]) > 1e-2
    assert furthest(together[0], together[1]) > 1e-2


@pytest.mark.slow
def test_a_company_that_is_stopped_at_the_end_of_an_epoch_has_tested_it(tmp_path, monkeypatch):
    write_npz(tmp_path / "images.npz")
    config, folder = small_config(tmp_path / "images.npz"), tmp_path / "run"
    config.batch_size, config.epochs = 96 // STEPS, 2
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 4 of 8"):
        patched.setattr(company.Log, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_company([config], [folder])
    train_company([config], [folder])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_students_that_do_not_fit_together_are_told_why(tmp_path):
    one, other = (small_config(tmp_path / "images.npz", "kd") for _ in range(2))
    other.optimizer.lr, other.seed = 0.5, 3
    with pytest.raises(ValueError, match="differ in optimizer.lr: train them apart"):
        check_members([one, other])
