"""A run has a name, is done once, and survives being stopped."""

import json
import signal
import subprocess
import sys
import time

import pytest
from result_lines import line
from small_runs import PATIENCE

from atkd_jax.runtime.preemption import StopSignal, stop_signal
from experiments import ledger, measure, run, runs, worker
from experiments.schema import CURVES
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


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Two finished runs of one company, whose export is not looked at, and their worker."""
    group = [runs.resolve(f"digits:method={method}") for method in ("kd", "at")]
    for one in group:
        folder = tmp_path / "runs" / one.hash
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
        rows = [{"epoch": n + 1} | dict.fromkeys(CURVES, 1.0) for n in range(12)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "runs" / group[0].teacher.hash).mkdir()
    (tmp_path / "runs" / group[0].teacher.hash / "summary.json").write_text("{}")
    monkeypatch.setattr(worker, "train_and_evaluate", lambda *_: {"last": {"top1": 1.0}})

    def measure_no_network(run, folder, *_):
        curves = measure.history(folder, 12)
        return line(run.text, 0, 1.0, history=curves, matrix=measure.matrix(folder, 12)) | {
            "best": {"epoch": 1, "top1": 1.0, "top5": 1.0, "loss": 1.0}
        }

    monkeypatch.setattr(worker, "measure", measure_no_network)
    return worker.Worker(tmp_path / "runs", tmp_path / "results", None), group


def drop_a_row(folder):
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def write_metrics(text):
    return lambda folder: (folder / "metrics.jsonl").write_bytes(text)


def write_matrix(folder):
    (folder / "epochs").mkdir()
    (folder / "epochs" / "0012.npz").write_bytes(b"PK")


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop_a_row, "metrics.jsonl has 11 of 12 epochs"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "No such file"),
        (write_metrics(b""), "metrics.jsonl has 0 of 12 epochs"),
        (write_metrics(b"[]\n"), "metrics.jsonl:1 is damaged: it is not a JSON object"),
        (write_metrics(b"\xff\n"), "metrics.jsonl:1 is damaged: 'utf-8' codec"),
        (write_metrics(b"\0" * 99), "metrics.jsonl:1 is damaged"),
        (write_metrics(b"[" * 10**5), "metrics.jsonl:1 is damaged"),
        (write_metrics(b'{"epoch": 1}\n'), "metrics.jsonl:1 is damaged: it has no train/loss"),
        (write_metrics(b'{"epoch": 1, "train/loss": NaN, "test/loss": 1, "test/top1": 1}\n'),
         "metrics.jsonl:1 is damaged: its train/loss is nan"),
        (write_metrics(b'{"epoch": 2, "train/loss": 1, "test/loss": 1, "test/top1": 1}\n'),
         "metrics.jsonl:1 is damaged: it is of epoch 2"),
        (write_matrix, "0012.npz is damaged or missing"),
    ],
)  # fmt: skip
def test_a_finished_run_that_is_damaged_is_named_and_the_others_are_measured(
    finished, capfd, damage, message
):
    ours, group = finished
    damage(ours.folder(group[0]))
    for _ in range(2):  # as often as the command is given
        (failed,) = run.fill(ours, [group], StopSignal())
        assert "\n" not in failed and message in failed and str(ours.folder(group[0])) in failed
        assert list(ledger.lines(ours.results)[0]) == [group[1].hash]
        assert len((ours.results / "digits.jsonl").read_text().splitlines()) == 1
    assert ours.folder(group[0]).exists()


def test_a_result_that_the_reader_would_reject_is_named_and_not_written(finished, monkeypatch):
    ours, group = finished
    monkeypatch.setattr(worker, "measure", lambda run, *_: line(run.text, 0, 1.0, seconds=-1.0))
    (failed,) = run.fill(ours, [group[:1]], StopSignal())
    assert "gives no result: its seconds is -1.0" in failed and "move the folder away" in failed
    assert not ours.results.exists()


def test_a_lock_is_a_lock_whatever_it_holds_and_no_link(pretended, tmp_path):
    ours, _ = pretended
    kd = runs.resolve("digits:method=kd")
    path = ours.workdir / f"{kd.hash}.lock"
    ours.workdir.mkdir()
    path.write_bytes(b"\xff half")
    with ours.lock(kd):
        assert ours.lock(kd) is None
    path.unlink()
    with ours.lock(kd):
        assert path.exists()
    path.unlink()
    (tmp_path / "mine").write_text("mine")
    path.symlink_to(tmp_path / "mine")
    ours.folder(kd.teacher).mkdir()
    (ours.folder(kd.teacher) / "summary.json").write_text("{}")
    (failed,) = run.fill(ours, [[kd]], StopSignal())
    assert str(path) in failed and (tmp_path / "mine").read_text() == "mine"


def test_a_workdir_that_went_away_does_not_end_the_queue_in_a_trace(tmp_path):
    (tmp_path / "runs").write_text("mine")
    gone = worker.Worker(tmp_path / "runs", tmp_path / "results", None)
    todo = [[runs.resolve(f"digits:method={method}")] for method in ("none", "kd")]
    failed = run.fill(gone, todo, StopSignal())
    assert len(failed) == 2 and all(str(tmp_path / "runs") in told for told in failed)


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
    monkeypatch.setattr("sys.argv", ["run", *flags.format(tmp_path).split()])
    with pytest.raises(SystemExit) as ended:
        run.main()
    told = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert told.startswith(f"error: {message.format(tmp_path)}")
    assert ended.value.code and len(told.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signal_between_two_runs_ends_the_queue_in_words(tmp_path, monkeypatch):
    class Stopped:
        tried = 0

        def folder(self, run):
            return tmp_path / run.hash

        def work(self, group):
            self.tried += 1
            raise ValueError("fails at once")

        def trained(self, group):
            return False

    todo = [[runs.resolve(f"digits:method={method}")] for method in ("none", "kd")]
    monkeypatch.setattr(run, "say", lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = Stopped()
    with run.budget(0) as stop:
        run.fill(stopped, todo, stop)
        assert stop.asked
    assert stopped.tried == 1


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


@pytest.mark.slow
def test_a_budget_stops_a_run_and_the_same_command_finishes_it(tmp_path):
    first = start(tmp_path, "--budget=0.01")
    said = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 0
    assert "stopped; the same command goes on" in said
    name = runs.resolve("digits:method=none").hash
    assert ledger.read(tmp_path / "results") == ({}, [])

    second = start(tmp_path)
    assert "1 runs, 0 of them done" in second.communicate(timeout=PATIENCE)[0]
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
