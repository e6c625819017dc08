"""A run takes over no folder but its own, and says what is wrong with the files there."""

import json
import os
from pathlib import Path

import pytest
from small_runs import EXPORT_META, small_config

from atkd_jax.runtime import lock, run_files
from atkd_jax.runtime.checkpoint import read_export_meta

LOCK = "process 7 on a.host"
# What has happened to JSON files of ours, or was never one.
DAMAGED = {
    "empty": b"",
    "cut": b'{"student": "res',
    "zeros": b"\0" * 64,
    "not text": b"\xff\xfe\x80{}",
    "null": b"null",
    "a list": b"[1, 2]",
    "a number": b"3",
    "another program's": b'{"hidden_size": 768}',
    "deep": b"[" * 100_000,
    "a number of 5000 digits": b'{"epochs": ' + b"9" * 5000 + b"}",
}


@pytest.fixture
def config():
    return small_config(Path("/data.npz"))


def content(folder):
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def refused(match, act, folder):
    before = content(folder)
    with pytest.raises(ValueError, match=match) as caught:
        act()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert content(folder) == before


def lock_once(folder):
    with lock.lock(folder):
        pass


@pytest.mark.parametrize("name", run_files.WRITTEN)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_a_run_would_write_is_the_users_unless_a_run_says_otherwise(
    name, kind, config, tmp_path
):
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
        (path / "thesis").write_text("three years")
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.write_text("three years")
    refused(f"{name}.* is not", lambda: run_files.check(config, tmp_path), tmp_path)
    if name != "config.json" and not (name == "export" and kind != "link"):
        (tmp_path / "lock").write_text(LOCK)
        if name != "checkpoints" or kind == "link":
            run_files.check(config, tmp_path)


def test_other_files_of_the_user_stay_and_are_no_hindrance(config, tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "device").mkdir()
    run_files.check(config, tmp_path)
    with run_files.disk_errors(tmp_path), lock.lock(tmp_path):
        run_files.write_json(tmp_path / "config.json", config.to_dict())
    run_files.check(config, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "device", "lock", "notes.txt"]


def make_link(path):
    (path.parent / "precious").write_text(LOCK)
    path.symlink_to("precious")


LOCKS = {
    "text": lambda path: path.write_text("my door code"),
    "long": lambda path: path.write_text(LOCK + "\n" * 2000),
    "bytes": lambda path: path.write_bytes(b"\xff\0"),
    "a folder": lambda path: path.mkdir(),
    "a link": make_link,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_that_is_not_ours_is_neither_followed_nor_changed(kind, config, tmp_path):
    LOCKS[kind](tmp_path / "lock")
    for act in (lambda: run_files.check(config, tmp_path), lambda: lock_once(tmp_path)):
        refused("lock is not the lock of a run, .* another --workdir", act, tmp_path)


def test_a_folder_in_which_nothing_was_written_is_nobodys_run(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    lock_once(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    (tmp_path / "metrics.jsonl").write_text("mine, too")
    refused("metrics.jsonl is not from a run", lambda: run_files.check(config, tmp_path), tmp_path)


def test_a_teacher_of_an_earlier_run_is_taken_up(config, tmp_path):
    (tmp_path / "teacher").mkdir()
    run_files.write_json(tmp_path / "teacher" / "config.json", config.to_dict())
    run_files.check(config, tmp_path)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_with_what_to_do(damage, config, tmp_path):
    for name, act, advice in (
        ("config.json", lambda: run_files.check(config, tmp_path), "put the run's own back"),
        (
            "summary.json",
            lambda: run_files.read_summary(tmp_path),
            "move it away and give the run's",
        ),
        ("meta.json", lambda: read_export_meta(tmp_path), "put the run's own file back"),
    ):
        (tmp_path / name).write_bytes(DAMAGED[damage])
        refused(rf"{tmp_path}/{name} is not .* \(.*\); {advice}", act, tmp_path)
        (tmp_path / name).unlink()


SUMMARY = {
    "last": {"top1": 1.5},
    "best": {"top1": 2},
    "seconds": 0.5,
    "config": {},
    "student": {},
    "versions": {},
}


@pytest.mark.parametrize(
    "name, value, read",
    [
        ("summary.json", SUMMARY, run_files.read_summary),
        ("meta.json", EXPORT_META, read_export_meta),
    ],
)
def test_a_key_that_is_missing_is_named(name, value, read, tmp_path):
    for key in value:
        (tmp_path / name).write_text(json.dumps({k: v for k, v in value.items() if k != key}))
        refused(rf"{name} is not .*\(it has no {key}", lambda: read(tmp_path), tmp_path)
    (tmp_path / name).write_text(json.dumps(value))
    assert read(tmp_path) == value


def test_home_is_written_out_where_paths_come_in(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config.data.name, config.data.data_dir = "npz:~/data.npz", "~/sets"
    config.teacher.weights = "~/run/export"
    run_files.expand_paths(config)
    assert config.data.name == "npz:/home/someone/data.npz"
    assert config.data.data_dir == "/home/someone/sets"
    assert config.teacher.weights == "/home/someone/run/export"
    config.data.name = "cifar10"
    run_files.expand_paths(config)
    assert config.data.name == "cifar10"
    with pytest.raises(ValueError, match="there is no user 'nobody-at-all'"):
        run_files.expand("~nobody-at-all/run")


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "hdfs://host/run"])
def test_a_bucket_is_no_workdir(address, config):
    with pytest.raises(ValueError, match=f"workdir {address} is a bucket"):
        run_files.check(config, Path(address))
    assert not Path(address.split("/")[0]).exists()


def test_a_file_is_no_workdir(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run_files.check(config, tmp_path / "file")


@pytest.mark.parametrize(
    "key, value",
    [
        ("mean", [0.5]),
        ("mean", None),
        ("mean", "0.5"),
        ("mean", [0.5, 0.5, "0.5"]),
        ("mean", [0.5, 0.5, True]),
        ("mean", [127, 127, 127]),
        ("std", 0.5),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", [0.5, 0.5, 10**400]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, 0.5, -1.0]),
        ("num_classes", 0),
        ("num_classes", 2.5),
        ("class_names", [1, 2]),
        ("image_shape", [8, 8]),
        ("model", None),
        ("top1", float("inf")),
    ],
)
def test_an_export_edited_by_hand_is_named_with_the_key(key, value, tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps(EXPORT_META | {key: value}))
    refused(rf"meta.json is not .*\({key} is ", lambda: read_export_meta(tmp_path), tmp_path)
