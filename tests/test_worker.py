"""A job is done once, and what fails costs no other job."""

import json

import pytest
from result_lines import line
from small_runs import small_config, write_npz

from atkd_jax.runtime import run_files
from atkd_jax.training import teachers
from experiments.queue import jobs, worker
from experiments.queue.jobs import Job
from experiments.results import measure, store
from experiments.results.schema import CURVES

SUMMARY = {
    "last": {"top1": 1.0}, "best": {"top1": 1.0}, "seconds": 1.0, "config": {}, "student": {},
    "versions": {},
}  # fmt: skip


def finish(folder):
    """Makes the folder of a finished job whose export is never looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY))


def test_published_weights_are_checked_against_their_name(tmp_path):
    with pytest.raises(ValueError, match="give the folder that holds it with --weights"):
        worker.published_weights("net-12fca82f.th", None)
    (tmp_path / "net-12fca82f.th").write_bytes(b"something else")
    with pytest.raises(ValueError, match="damaged"):
        worker.published_weights("net-12fca82f.th", tmp_path)
    (tmp_path / "net-00000000.th").write_bytes(b"weights")
    with pytest.raises(ValueError, match="damaged"):
        worker.published_weights("net-00000000.th", tmp_path)


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """A worker whose trainings only note who was trained; those in `diverges` get no summary."""
    trained, diverges = [], {}

    def train(configs, folders):
        names = [folder.name for folder in folders]
        trained.append(names)
        for folder in folders:
            if folder.name not in diverges:
                finish(folder)
        if left := [diverges[name] for name in names if name in diverges]:
            raise FloatingPointError("; ".join(left))

    monkeypatch.setattr(worker, "train_students", train)
    monkeypatch.setattr(worker, "measure", lambda job, *_: {"hash": job.hash})
    monkeypatch.setattr(store, "check", lambda line: None)
    ours = worker.Worker(tmp_path / "runs", tmp_path / "results", None)
    return ours, trained, diverges


def test_a_job_is_done_by_one_process_at_a_time(pretended):
    ours, trained, _ = pretended
    kd, at = (jobs.resolve(f"digits:method={method}") for method in ("kd", "at"))
    with ours.lock(kd):
        assert ours.lock(kd) is None
        ours.work([kd, at])
    assert trained == [[kd.teacher.hash], [at.hash]]  # the other goes on without it
    ours.work([kd, at])
    assert trained[2:] == [[kd.hash]]


def test_jobs_that_are_not_done_are_trained_as_one_group(pretended):
    """Also those that are trained and not measured: the group's checkpoints are named by all."""
    ours, trained, _ = pretended
    group = [jobs.resolve(f"digits:method={method}") for method in ("kd", "at", "sp")]
    store.append(ours.results / "digits.jsonl", {"hash": group[0].hash})
    finish(ours.folder(group[1]))
    ours.work(group)
    assert trained[1:] == [[group[1].hash, group[2].hash]]
    assert ours.done() == {group[0].teacher.hash, *(job.hash for job in group)}
    ours.work(group)
    assert len(trained) == 2 and not ours.failed


def test_trained_jobs_are_measured_without_training(pretended):
    ours, trained, _ = pretended
    group = [jobs.resolve(f"digits:method={method}") for method in ("kd", "at")]
    for job in (group[0].teacher, *group):
        finish(ours.folder(job))
    (ours.folder(group[0]) / "checkpoints").mkdir()
    ours.work(group)
    assert trained == [] and ours.done() == {job.hash for job in group}
    assert not (ours.folder(group[0]) / "checkpoints").exists()


def test_a_teacher_whose_weights_are_elsewhere_is_trained_again(pretended):
    ours, trained, _ = pretended
    kd = jobs.resolve("digits:method=kd")
    store.append(ours.results / "digits.jsonl", {"hash": kd.teacher.hash})
    ours.work([kd])
    assert trained == [[kd.teacher.hash], [kd.hash]]
    assert list(store.lines(ours.results)[0]) == [kd.teacher.hash, kd.hash]  # one line each
    ours.work([jobs.resolve("digits:method=at")])
    assert trained.count([kd.teacher.hash]) == 1


def test_a_group_goes_on_without_the_one_that_diverged(pretended, capfd):
    ours, trained, diverges = pretended
    kd, at, sp = (jobs.resolve(f"digits:method={method}") for method in ("kd", "at", "sp"))
    diverges[at.hash] = "at, seed 0: the loss is not finite at step 3"
    ours.work([kd, at, sp])
    assert ours.done() == {kd.teacher.hash, kd.hash, sp.hash}
    assert [names for names in trained if at.hash in names] == [[kd.hash, at.hash, sp.hash]]
    assert list(ours.failed) == [at.hash]
    told = capfd.readouterr()
    (said,) = [line for line in told.out.splitlines() if line.startswith("error: ")]
    log = ours.log(kd)
    assert said == f"error: digits:method=at student seed 0: {diverges[at.hash]} (see {log})"
    assert "Traceback" not in told.err + log.read_text()


def test_a_teacher_that_diverged_is_not_trained_again_for_every_student(pretended):
    ours, trained, diverges = pretended
    kd, at = (jobs.resolve(f"digits:method={method}") for method in ("kd", "at"))
    diverges[kd.teacher.hash] = "the loss is not finite at step 3"
    ours.work([kd])
    ours.work([at])
    assert trained == [[kd.teacher.hash]]
    assert list(ours.failed) == [kd.teacher.hash, kd.hash, at.hash]
    assert ours.failed[at.hash].startswith("its teacher failed: the loss is not finite at step 3")
    assert ours.done() == set()


def test_a_bug_shows_its_traceback_and_costs_no_other_job(pretended, monkeypatch, capfd):
    ours, _, _ = pretended
    group = [jobs.resolve(f"digits:method={method}") for method in ("kd", "at")]

    def measure(job, *_):
        return {"hash": job.hash if job.text.endswith("=at") or job.role == "teacher" else 1 / 0}

    monkeypatch.setattr(worker, "measure", measure)
    ours.work(group)
    assert ours.done() == {group[0].teacher.hash, group[1].hash}
    assert ours.failed[group[0].hash].startswith("ZeroDivisionError: division by zero")
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.slow
def test_students_that_diverge_cost_no_others_in_a_real_training(tmp_path, monkeypatch):
    npz = write_npz(tmp_path / "images.npz")

    def job_of(method, teacher=None):
        config = small_config(npz, method)
        config.epochs = config.teacher.epochs = 2
        if teacher is None:
            config = teachers.teacher_config(config)
        else:
            config.teacher.weights = f"run:{teacher.hash}"
        if method == "at":
            config.terms.at.weight = 1e38
        role = "student" if teacher else "teacher"
        name = jobs.name_of(config.to_dict())
        return Job(f"digits:method={method}", role, "paper", 0, config, teacher, name)

    teacher = job_of("kd")
    group = [job_of(method, teacher) for method in ("kd", "at", "sp")]
    seen = {}

    def keep_summary(job, folder, summary, commit):
        seen[job.hash] = run_files.read_summary(folder)
        return {"hash": job.hash}

    monkeypatch.setattr(worker, "measure", keep_summary)
    monkeypatch.setattr(store, "check", lambda line: None)
    ours = worker.Worker(tmp_path / "runs", tmp_path / "results", None)
    ours.work(group)
    assert list(ours.failed) == [group[1].hash]
    assert "at, seed 0: " in ours.failed[group[1].hash]
    assert "is not finite" in ours.failed[group[1].hash]
    assert seen.keys() == {teacher.hash, group[0].hash, group[2].hash}
    assert all("company" in seen[job.hash] for job in (group[0], group[2]))
    assert not list(ours.workdir.glob("together-*"))


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Two trained jobs of one group, whose export is not looked at, and their worker."""
    group = [jobs.resolve(f"digits:method={method}") for method in ("kd", "at")]
    ours = worker.Worker(tmp_path / "runs", tmp_path / "results", None)
    for job in (group[0].teacher, *group):
        finish(ours.folder(job))
        rows = [{"epoch": n + 1} | dict.fromkeys(CURVES, 1.0) for n in range(12)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (ours.folder(job) / "metrics.jsonl").write_text(text)

    def measure_no_network(job, folder, *_):
        curves = measure.history(folder, {"epochs": 12})
        return line(job.text, 0, 1.0, history=curves, matrix=measure.matrix(folder, 12)) | {
            "best": {"epoch": 1, "top1": 1.0, "top5": 1.0, "loss": 1.0}
        }

    monkeypatch.setattr(worker, "measure", measure_no_network)
    return ours, group


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
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json"),
    ],
)  # fmt: skip
def test_a_finished_job_that_is_damaged_is_named_and_the_others_are_measured(
    finished, capfd, damage, message
):
    ours, group = finished
    damage(ours.folder(group[0]))
    for _ in range(2):  # as often as the command is given
        ours.failed.clear()
        ours.work(group)
        ((name, failed),) = ours.failed.items()
        assert name == group[0].hash
        assert "\n" not in failed and message in failed and str(ours.folder(group[0])) in failed
        assert list(store.lines(ours.results)[0]) == [group[1].hash]
        assert len((ours.results / "digits.jsonl").read_text().splitlines()) == 1
    assert ours.folder(group[0]).exists()
    assert "Traceback" not in capfd.readouterr().err


def test_a_result_that_the_reader_would_reject_is_named_and_not_written(finished, monkeypatch):
    ours, group = finished
    monkeypatch.setattr(worker, "measure", lambda job, *_: line(job.text, 0, 1.0, seconds=-1.0))
    ours.work(group[:1])
    failed = ours.failed[group[0].hash]
    assert "gives no result: its seconds is -1.0" in failed and "move the folder away" in failed
    assert not ours.results.exists()


def test_a_lock_is_a_lock_whatever_it_holds_and_no_link(pretended, tmp_path):
    ours, _, _ = pretended
    kd = jobs.resolve("digits:method=kd")
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
    finish(ours.folder(kd.teacher))
    ours.work([kd])
    assert str(path) in ours.failed[kd.hash] and (tmp_path / "mine").read_text() == "mine"


def test_a_workdir_that_went_away_does_not_end_the_queue_in_a_trace(tmp_path, capfd):
    (tmp_path / "runs").write_text("mine")
    gone = worker.Worker(tmp_path / "runs", tmp_path / "results", None)
    for method in ("none", "kd"):
        gone.work([jobs.resolve(f"digits:method={method}")])
    assert len(gone.failed) == 2
    assert all(str(tmp_path / "runs") in told for told in gone.failed.values())
    assert "Traceback" not in capfd.readouterr().err
