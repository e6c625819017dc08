"""The command that fills tables: its queue, its flags, and how it stops."""

import signal
import subprocess
import sys
import time

import pytest
from small_runs import PATIENCE

from atkd_jax.command_line import entry_point
from atkd_jax.errors import UserError
from atkd_jax.runtime.preemption import stop_signal
from experiments.queue import jobs, launch, worker
from experiments.queue.worker import Worker
from experiments.results import store
from experiments.tables.rows import TABLES, Row


def test_the_queue_takes_one_seed_after_the_other_and_no_run_twice():
    rows = [Row(f"cifar100:method={m},pair={p}") for p in ("r56_r20", "r110_r20")
            for m in ("none", "kd")]  # fmt: skip
    todo = launch.make_queue(rows, "paper", seeds=2)
    assert [r.seed for r in todo] == [0] * 3 + [1] * 3
    assert len({r.hash for r in todo}) == 6


def test_only_runs_with_the_same_teacher_and_seed_are_grouped():
    rows = TABLES["digits"].rows
    todo = launch.make_queue(list(rows), "quick", seeds=2)
    made = launch.make_groups(todo, students=4)
    assert sorted(r.hash for group in made for r in group) == sorted(r.hash for r in todo)
    for group in made:
        assert len(group) <= 4
        assert len({r.seed for r in group}) == 1
        assert len(group) == 1 or all(r.config.terms for r in group)
    assert max(map(len, made)) == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "the following arguments are required: --table"),
        ("--table=digit", "unknown table 'digit'; did you mean 'digits'?"),
        ("--table=", "unknown table ''"),
        ("--table=digits --methods=kd,,kdd", "unknown method of digits 'kdd'; did you mean 'kd'?"),
        ("--table=digits --methods=", "no method of digits is named; choose from: teacher, none"),
        ("--table=digits --datasets=,", "no dataset of digits is named; choose from: digits"),
        ("--table=digits --datasets=mnist", "unknown dataset of digits 'mnist'"),
        ("--table=rtk_table2 --datasets=svhn --methods=kd", "unknown method of rtk_table2 'kd'"),
        ("--table=digits --protocol=fast", "argument --protocol: invalid choice: 'fast'"),
        *((f"--table=digits --{flag}={value}", f"argument --{flag}: '{value}' is no whole number")
          for flag in ("seeds", "students", "devices") for value in ("0", "-1", "nan", "1.5", "")),
        *((f"--table=digits --budget={value}", f"argument --budget: '{value}' is no number from 0")
          for value in ("nan", "inf", "-1", "1e30", "x", "")),
        ("--table=digits --weights={}/none", "argument --weights: {}/none is no folder"),
        ("--table=digits --weights={}/file", "argument --weights: {}/file is no folder"),
        ("--table=digits --workdir={}/file", "argument --workdir: {}/file is no folder"),
        ("--table=digits --results={}/file/x", "argument --results: {}/file is no folder"),
        ("--table=digits --results={}/link", "argument --results: {}/link is no folder"),
        ("--table=digits --workdir=s3://x", "argument --workdir: s3://x is a bucket"),
        ("--table=digits --seed=1", "unrecognized arguments: --seed=1"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flags_is_one_line_and_writes_nothing(
    tmp_path, monkeypatch, capsys, flags, message
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["launch", *flags.format(tmp_path).split()])
    with pytest.raises(SystemExit) as ended, entry_point():
        launch.main()
    told = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert told.startswith(f"error: {message.format(tmp_path)}")
    assert ended.value.code and len(told.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signal_between_two_jobs_ends_the_queue_in_words(tmp_path, monkeypatch):
    tried = []

    def fail(configs, folders):
        tried.append(folders)
        raise UserError("fails at once")

    todo = [[jobs.resolve("digits:method=none", seed=seed)] for seed in (0, 1)]
    monkeypatch.setattr(worker, "train_students", fail)
    monkeypatch.setattr(worker, "say", lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = Worker(tmp_path / "runs", tmp_path / "results", None)
    with launch.budget(0) as stop:
        launch.work_through(stopped, todo, stop)
        assert stop.asked
    assert len(tried) == 1


def test_who_listens_for_signals_within_a_listener_hears_the_same():
    with launch.budget(0.01) as outer:
        while not outer.asked:
            time.sleep(0.01)
        with stop_signal() as inner:
            assert inner.asked
    with stop_signal() as later:
        assert not later.asked


def start(tmp_path, *more):
    command = [sys.executable, "-m", "experiments.queue.launch", "--table=digits", "--methods=none"]
    command += [f"--workdir={tmp_path / 'runs'}", f"--results={tmp_path / 'results'}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_budget_stops_a_run_and_the_same_command_finishes_it(tmp_path):
    first = start(tmp_path, "--budget=0.01")
    said = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 0
    assert "stopped; the same command goes on" in said
    name = jobs.resolve("digits:method=none").hash
    assert store.read(tmp_path / "results") == ({}, [])

    second = start(tmp_path)
    assert "1 runs, 0 of them done" in second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 0
    results, problems = store.read(tmp_path / "results")
    assert problems == []
    line = results[name]
    assert line["last"]["epoch"] == 12
    assert len(line["history"]["test/top1"]) == 12
    assert line["last"]["top1"] > 90
    assert line["areas"]["hard"] == pytest.approx(
        (line["last"]["top1"] / 100 + 1 - (1 - line["last"]["top1"] / 100) / 9) / 2
    )

    third = start(tmp_path, "--devices", "2")
    assert third.communicate(timeout=PATIENCE)[0].count("1 runs, 1 of them done") == 2
    assert third.returncode == 0
    assert not (tmp_path / "runs" / name / "checkpoints").exists()


@pytest.mark.slow
def test_sigterm_ends_the_queue_without_a_trace(tmp_path):
    process = start(tmp_path, "--seeds=3")
    process.stdout.readline()  # the queue is known: signals are listened to
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0
    assert "stopped" in said
