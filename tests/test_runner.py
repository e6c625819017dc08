"""A run has a name, survives being stopped, and a student in company is the student alone."""

import contextlib
import functools
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import small_config, write_npz

from atkd_jax import build, data, teacher
from atkd_jax.checkpoint import load_export
from atkd_jax.signals import Interrupted
from atkd_jax.train import train_and_evaluate
from experiments import company, ledger, run, runs
from experiments.company import check_members, train_company
from experiments.tables import TABLES, Row

STEPS = 4


def company_config(tmp_path, method, seed):
    config = small_config(tmp_path / "images.npz", method)
    config.batch_size, config.epochs, config.seed = 96 // STEPS, 1, seed
    config.teacher.weights = str(tmp_path / "teacher" / "export")
    return config


def exported(config, folder):
    source = data.load(config.data.name)
    network = build.network(config, config.student, source.spec)
    return load_export(folder / "export", teacher.variables_like(network, source.spec))


def furthest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


def test_a_student_in_company_is_the_student_alone(tmp_path):
    write_npz(tmp_path / "images.npz")
    make = functools.partial(company_config, tmp_path)
    train_and_evaluate(teacher.recipe(make("kd", 0)), tmp_path / "teacher")
    members = [make("kd", 0), make("rtk", 0), make("kd", 1)]
    folders = [tmp_path / str(i) for i in range(3)]
    train_company(members, folders)

    together = [exported(c, f) for c, f in zip(members, folders, strict=True)]
    for i, method in enumerate(("kd", "rtk")):
        alone = tmp_path / f"alone-{method}"
        result = train_and_evaluate(make(method, 0), alone)
        assert furthest(together[i], exported(members[i], alone)) < 1e-5
        ours = json.loads((folders[i] / "summary.json").read_text())
        assert ours.keys() == result.keys()
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


def test_a_company_that_is_stopped_at_the_end_of_an_epoch_has_tested_it(tmp_path, monkeypatch):
    write_npz(tmp_path / "images.npz")
    config, folder = small_config(tmp_path / "images.npz"), tmp_path / "run"
    config.batch_size, config.epochs = 96 // STEPS, 2
    asked = contextlib.nullcontext(SimpleNamespace(asked=True))
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 4 of 8"):
        patched.setattr(company, "stop_signal", lambda: asked)
        train_company([config], [folder])
    train_company([config], [folder])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_students_that_do_not_fit_together_are_told_why(tmp_path):
    one, other = (small_config(tmp_path / "images.npz", "kd") for _ in range(2))
    other.optimizer.lr, other.seed = 0.5, 3
    with pytest.raises(ValueError, match="differ in optimizer.lr: train them apart"):
        check_members([one, other])


def test_the_name_of_a_run_is_what_it_computes():
    kd = runs.resolve("digits:method=kd")
    assert runs.resolve("digits:method=kd", seed=1).hash != kd.hash
    assert runs.resolve("digits:method=at").hash != kd.hash
    assert runs.resolve("digits:method=at").teacher.hash == kd.teacher.hash
    assert runs.resolve("digits:method=kd", seed=4).teacher.hash == kd.teacher.hash
    assert runs.resolve("digits:method=kd", role="teacher").hash == kd.teacher.hash
    moved = runs.resolve("digits:method=kd").config
    moved.parallel, moved.data.data_dir = "pmap", "/elsewhere"
    assert runs.name_of(moved.to_dict()) == kd.hash
    later = kd.config.to_dict()
    del later["accumulate"]  # a result from before this key existed
    assert runs.name_of(later) == kd.hash
    pairs = [f"cifar100:method=none,pair={pair}" for pair in ("r56_r20", "r110_r20")]
    assert len({runs.resolve(text).hash for text in pairs}) == 1  # alone, there is no teacher


def test_quick_is_one_cycle_and_shrinks_warm_ups():
    run = runs.resolve("cifar100:method=dkd,pair=r56_r20", protocol="quick")
    assert (run.config.epochs, run.config.schedule.name) == (30, "onecycle")
    assert run.config.terms.dkd.warmup_epochs == 20 * 30 / 240
    assert run.config.optimizer.lr == 0.1
    assert run.teacher.config.epochs == 30
    longer = runs.resolve("cifar100:method=dkd,pair=r56_r20", protocol="longer")
    assert (longer.config.epochs, longer.teacher.config.epochs) == (120, 120)
    assert longer.config.terms.dkd.warmup_epochs == 20 * 120 / 240
    paper = runs.resolve("cifar100:method=dkd,pair=r56_r20")
    assert (paper.config.epochs, paper.config.schedule.name) == (240, "step")
    assert paper.config.terms.dkd.warmup_epochs == 20


@pytest.mark.parametrize(
    "text, message",
    [
        ("cifar11:method=kd", r"no configs/cifar11\.py"),
        ("cifar10:method=kdd", "did you mean 'kd'"),
        ("cifar10:methd=kd", "did you mean 'method'"),
    ],
)
def test_a_configuration_that_does_not_exist_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        runs.resolve(text)


def test_the_queue_takes_one_seed_after_the_other_and_no_run_twice():
    rows = [Row(f"cifar100:method={m},pair={p}") for p in ("r56_r20", "r110_r20")
            for m in ("none", "kd")]  # fmt: skip
    todo = run.queue(rows, "paper", seeds=2)
    assert [r.seed for r in todo] == [0] * 3 + [1] * 3
    assert len({r.hash for r in todo}) == 6


def test_only_runs_with_the_same_teacher_and_seed_are_grouped():
    rows = TABLES["digits"].rows
    todo = run.queue(list(rows), "quick", seeds=2)
    made = run.groups(todo, students=4)
    assert sorted(r.hash for group in made for r in group) == sorted(r.hash for r in todo)
    for group in made:
        assert len(group) <= 4
        assert len({r.seed for r in group}) == 1
        assert len(group) == 1 or all(r.config.terms for r in group)
    assert max(map(len, made)) == 4


def test_published_weights_are_checked_against_their_name(tmp_path):
    with pytest.raises(ValueError, match="give the folder that holds it with --weights"):
        run.published("net-12fca82f.th", None)
    (tmp_path / "net-12fca82f.th").write_bytes(b"something else")
    with pytest.raises(ValueError, match="damaged"):
        run.published("net-12fca82f.th", tmp_path)
    (tmp_path / "net-00000000.th").write_bytes(b"weights")
    with pytest.raises(ValueError, match="damaged"):
        run.published("net-00000000.th", tmp_path)


def test_a_run_is_done_by_one_process_at_a_time(tmp_path):
    worker = run.Worker(tmp_path, tmp_path, None)
    kd, at = (runs.resolve(f"digits:method={method}") for method in ("kd", "at"))
    with worker.locked(kd):
        with worker.locked(at):
            pass
        with pytest.raises(run.Busy, match=kd.hash), worker.locked(kd):
            pass
    with worker.locked(kd):
        pass


def start(tmp_path, *more):
    command = [sys.executable, "-m", "experiments.run", "--table=digits", "--methods=none"]
    command += [f"--workdir={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_budget_stops_a_run_and_the_same_command_finishes_it(tmp_path):
    first = start(tmp_path, "--budget=1")
    said = first.communicate(timeout=240)[0]
    assert first.returncode == 0
    assert "stopped; the same command goes on" in said
    name = runs.resolve("digits:method=none").hash
    assert list((tmp_path / "runs" / name / "checkpoints").iterdir())
    assert ledger.read(tmp_path / "results") == ({}, [])

    second = start(tmp_path)
    assert "1 runs, 0 of them done" in second.communicate(timeout=240)[0]
    assert second.returncode == 0
    results, problems = ledger.read(tmp_path / "results")
    assert problems == []
    line = results[name]
    assert line["last"]["epoch"] == 12
    assert len(line["history"]["test/top1"]) == 12
    assert line["last"]["top1"] > 90
    assert line["areas"]["hard"] == pytest.approx(
        (line["last"]["top1"] / 100 + 1 - (1 - line["last"]["top1"] / 100) / 9) / 2
    )

    third = start(tmp_path)
    assert "1 runs, 1 of them done" in third.communicate(timeout=240)[0]
    assert third.returncode == 0
    assert not (tmp_path / "runs" / name / "checkpoints").exists()


def test_sigterm_ends_the_queue_without_a_trace(tmp_path):
    process = start(tmp_path, "--seeds=3")
    process.stdout.readline()  # the queue is known: signals are listened to
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0
    assert "stopped" in said
