"""The doctor finds what is wrong before a run does, and leaves nothing behind."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import PATIENCE, held_port, small_config, write_npz

from atkd_jax import doctor
from atkd_jax.data import tfds
from atkd_jax.nn import native
from atkd_jax.training import dry_run
from tests.images import encoded, picture


@pytest.fixture
def healthy(tmp_path):
    return small_config(write_npz(tmp_path / "data.npz")), tmp_path / "run"


def lines(capsys):
    return {
        line[6:].partition(":")[0]: line for line in capsys.readouterr().out.splitlines() if line
    }


def test_a_run_that_can_start_is_told_so(healthy, capsys):
    config, workdir = healthy
    assert doctor.examine(config, workdir)
    found = lines(capsys)
    checks = ["versions", "devices", "hosts", "data", "teacher", "workdir", "space"]
    assert list(found) == checks
    assert all(line.startswith("ok    ") for line in found.values())
    assert not workdir.exists()


def test_without_a_configuration_the_machine_is_looked_at(capsys):
    assert doctor.examine(None, None)
    assert list(lines(capsys)) == ["versions", "devices", "hosts"]


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    assert "no C++ compiler" in doctor.devices()


def test_everything_wrong_is_named_in_one_go(healthy, tmp_path, capsys):
    config, _ = healthy
    config.terms = {"kd": {"weight": 1.0}}
    config.teacher.weights = "none.pth"
    (tmp_path / "file").write_text("")
    Path(config.data.name.removeprefix("npz:")).rename(tmp_path / "elsewhere.npz")
    assert not doctor.examine(config, tmp_path / "file" / "run")
    found = lines(capsys)
    wrong = [name for name, line in found.items() if line.startswith("WRONG ")]
    assert wrong == ["data", "teacher", "workdir"]
    assert "space" not in found  # what a run needs is not known without its data
    assert "No such file" in found["data"] and "none.pth does not exist" in found["teacher"]
    assert "cannot be written: Not a directory" in found["workdir"]


def test_a_full_disk_is_noticed(healthy, capsys, monkeypatch):
    config, workdir = healthy
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert not doctor.examine(config, workdir)
    assert "0.0 GiB free, a run needs" in lines(capsys)["space"]


def test_an_array_that_is_missing_is_named(healthy, tmp_path):
    config, _ = healthy
    import numpy as np

    np.savez(tmp_path / "half.npz", x_train=np.zeros(3), y_train=np.zeros(3))
    config.data.name = f"npz:{tmp_path / 'half.npz'}"
    with pytest.raises(ValueError, match="half.npz has no array x_test"):
        doctor.data_set(config)
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:-300])
    with pytest.raises(ValueError, match="half.npz cannot be read as .npz: File is not a zip"):
        doctor.data_set(config)
    npz = write_npz(tmp_path / "whole.npz", train=12, test=6)
    config.data.name = f"npz:{npz}"
    assert doctor.data_set(config) == f"{npz}, 12 training and 6 test images"


def test_a_folder_of_images_is_counted_not_read(healthy, tmp_path):
    config, _ = healthy
    for split, num in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(num):
                path = tmp_path / "pets" / split / name / f"{i}.jpg"
                path.write_bytes(encoded(picture(0))[:-200])  # its header is whole
    config.data.name = f"folder:{tmp_path / 'pets'}"
    assert "6 training and 4 test images of 2 classes" in doctor.data_set(config)
    path.write_bytes(encoded(picture(0, (20, 30))))
    with pytest.raises(ValueError, match="its images differ in size"):
        doctor.data_set(config)
    config.data.options.image_size = 16
    assert "6 training and 4 test images of 2 classes" in doctor.data_set(config)
    shutil.rmtree(tmp_path / "pets" / "test" / "cat")
    with pytest.raises(ValueError, match="'cat' is in train and not in test"):
        doctor.data_set(config)


def test_a_set_that_is_not_prepared_comes_with_the_command(healthy, tmp_path):
    config, _ = healthy
    config.data.name, config.data.data_dir = "cifar10", str(tmp_path)
    with pytest.raises(ValueError, match="run: python -m atkd_jax.data.prepare cifar10"):
        doctor.data_set(config)


def test_neither_doctor_nor_dry_run_downloads(healthy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tfds, "download", None)
    config, workdir = healthy
    config.data.name, config.data.data_dir = "tfds:beans", str(tmp_path)
    assert not doctor.examine(config, workdir)
    assert "run: python -m atkd_jax.data.prepare beans" in lines(capsys)["data"]
    with pytest.raises(ValueError, match="beans is not prepared in .* run: python"):
        dry_run.make_plan(config)


def test_a_bucket_is_no_workdir():
    with pytest.raises(ValueError, match="is a bucket"):
        doctor.writable(None, Path("gs://somewhere/run"))


def test_it_leaves_nothing_behind_and_takes_nothing(healthy, tmp_path, monkeypatch):
    config, _ = healthy
    deep = tmp_path / "a" / "b" / "run"
    assert "writable by all" in doctor.writable(config, deep)
    assert not (tmp_path / "a").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    doctor.writable(config, empty)
    assert empty.exists() and not list(empty.iterdir())
    # Even where a file of the user's has the name that it chose.
    monkeypatch.setattr(doctor.secrets, "randbits", lambda _: 7)
    (empty / ".doctor-00000007-0").write_text("diagnosis")
    with pytest.raises(ValueError, match="cannot be written: File exists"):
        doctor.writable(config, empty)
    assert (empty / ".doctor-00000007-0").read_text() == "diagnosis"


def test_a_folder_that_a_run_would_refuse_is_named(healthy, tmp_path, capsys):
    config, workdir = healthy
    (workdir / "export").mkdir(parents=True)
    assert not doctor.examine(config, workdir)
    assert "export is not from a run" in lines(capsys)["workdir"]
    (workdir / "export").rmdir()
    (workdir / "summary.json").write_text("[]")
    (workdir / "lock").write_text("process 7 on here")
    assert not doctor.examine(config, workdir)
    assert "summary.json is not the summary of a run" in lines(capsys)["workdir"]


def two_doctors(tmp_path, *flags):
    """What real processes say that see each other and have different disks; both find a fault."""
    with held_port() as (port, _):
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "atkd_jax.doctor", f"--workdir={tmp_path / str(i)}"),
                    *(f"--coordinator_address=localhost:{port}", "--num_processes=2"),
                    *(f"--process_id={i}", *flags),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(2)
        ]
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert "ok    hosts: all 2 see each other" in outputs[0], outputs
    assert [process.returncode for process in processes] == [1, 1]
    return outputs


@pytest.mark.hosts
def test_two_hosts_must_write_into_one_folder(tmp_path):
    for i, output in enumerate(two_doctors(tmp_path)):
        folder = tmp_path / str(i)
        assert f"WRONG workdir (host {i}): {folder} is not the same folder" in output


@pytest.mark.hosts
def test_a_fault_on_one_host_is_told_on_both(tmp_path):
    """Neither waits for the other for ever."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "metrics.jsonl").write_text("mine")
    ours, theirs = two_doctors(tmp_path, "--config=configs/digits.py:method=none")
    assert f"WRONG workdir (host 0): {tmp_path}/0 can be used here, and not on another" in ours
    assert f"WRONG workdir (host 1): {tmp_path}/1/metrics.jsonl is not from a run" in theirs
