"""A run has a name, is done once, and survives being stopped."""

import signal
import subprocess
import sys
import time

import pytest

from atkd_jax.signals import StopSignal, stop_signal
from experiments import ledger, run, runs, worker
from experiments.tables import TABLES, Row


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
    assert (longer.config.epochs, longer.teacher.config.epochs) == (90, 90)
    assert longer.config.terms.dkd.warmup_epochs == 20 * 90 / 240
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
        worker.published("net-12fca82f.th", None)
    (tmp_path / "net-12fca82f.th").write_bytes(b"something else")
    with pytest.raises(ValueError, match="damaged"):
        worker.published("net-12fca82f.th", tmp_path)
    (tmp_path / "net-00000000.th").write_bytes(b"weights")
    with pytest.raises(ValueError, match="damaged"):
        worker.published("net-00000000.th", tmp_path)


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """A worker whose trainings only note who was trained."""
    trained = []

    def train(config, folder):
        trained.append(folder.name)
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text("{}")
        return {"last": {"top1": 1.0}}

    monkeypatch.setattr(worker, "train_and_evaluate", train)
    monkeypatch.setattr(worker, "train_company", lambda configs, folders: None)
    monkeypatch.setattr(worker, "measure", lambda run, *_: {"hash": run.hash})
    monkeypatch.setattr(ledger, "check", lambda line: None)
    return worker.Worker(tmp_path / "runs", tmp_path / "results", None), trained


def test_a_run_is_done_by_one_process_at_a_time(pretended):
    ours, trained = pretended
    kd, at = (runs.resolve(f"digits:method={method}") for method in ("kd", "at"))
    with ours.lock(kd):
        assert ours.lock(kd) is None
        ours.work([kd, at])
    assert trained == [kd.teacher.hash, at.hash]  # the other goes on without it
    ours.work([kd, at])
    assert trained[2:] == [kd.hash]


def test_a_teacher_whose_weights_are_elsewhere_is_trained_again(pretended):
    ours, trained = pretended
    kd = runs.resolve("digits:method=kd")
    ledger.append(ours.results / "digits.jsonl", {"hash": kd.teacher.hash})
    ours.work([kd])
    assert trained == [kd.teacher.hash, kd.hash]
    assert list(ledger.lines(ours.results)[0]) == [kd.teacher.hash, kd.hash]  # one line each
    ours.work([runs.resolve("digits:method=at")])
    assert trained.count(kd.teacher.hash) == 1


def test_a_company_goes_on_without_the_one_that_failed(tmp_path):
    todo = [runs.resolve(f"digits:method={method}") for method in ("kd", "at", "sp")]

    class Fragile:
        done = []

        def folder(self, run):
            return tmp_path / run.hash

        def work(self, group):
            if todo[1] in group:
                raise FloatingPointError("the loss of at is not finite")
            self.done += group

    fragile = Fragile()
    failed = run.fill(fragile, [todo], StopSignal())
    assert fragile.done == [todo[0], todo[2]]
    assert len(failed) == 1 and "digits:method=at seed 0: the loss of at" in failed[0]


def test_who_listens_for_signals_within_a_listener_hears_the_same():
    with run.budget(0.01) as outer:
        while not outer.asked:
            time.sleep(0.01)
        with stop_signal() as inner:
            assert inner.asked
    with stop_signal() as later:
        assert not later.asked


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

    third = start(tmp_path, "--devices", "2")
    assert third.communicate(timeout=240)[0].count("1 runs, 1 of them done") == 2
    assert third.returncode == 0
    assert not (tmp_path / "runs" / name / "checkpoints").exists()


def test_sigterm_ends_the_queue_without_a_trace(tmp_path):
    process = start(tmp_path, "--seeds=3")
    process.stdout.readline()  # the queue is known: signals are listened to
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0
    assert "stopped" in said
