"""One process at a time works in a run's folder, and the folder shows no trace of an idle one."""

import errno
import os
from pathlib import Path

import pytest

from atkd_jax.runtime import lock


def lock_once(folder):
    with lock.lock(folder):
        pass


def test_a_lock_names_its_process_and_keeps_others_out(tmp_path):
    folder = tmp_path / "deep" / "run"
    with lock.lock(folder):
        assert lock.OWNER.fullmatch((folder / "lock").read_text())
        with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on"):
            lock_once(folder)
    assert not (tmp_path / "deep").exists()
    (tmp_path / "lock").write_text("process 1234567890 on a.host.with.a.long.name")
    (tmp_path / "file").touch()
    lock_once(tmp_path)
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert lock.OWNER.fullmatch((tmp_path / "lock").read_text())


def test_a_lock_that_was_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    """By a process that ended between our opening the file and our locking it."""
    flock, removed = lock.fcntl.flock, []

    def late(*args):
        if not removed:
            removed.append((tmp_path / "run" / lock.LOCK).unlink())
        flock(*args)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with lock.lock(tmp_path / "run"):
        with pytest.raises(ValueError, match="is in use by process"):
            lock_once(tmp_path / "run")


def test_an_error_is_not_hidden_by_a_folder_that_is_gone(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.lock(tmp_path / "run"):
        (tmp_path / "run" / lock.LOCK).unlink()
        (tmp_path / "run").rmdir()
        1 / 0  # noqa: B018


def test_an_empty_folder_of_the_users_is_not_removed(tmp_path):
    lock_once(tmp_path)
    assert tmp_path.exists() and not os.listdir(tmp_path)


def test_folders_that_were_made_before_the_disk_was_full_are_removed(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def full(path, *args, **kwargs):
        if Path(path).name == "run":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *args, **kwargs)

    (tmp_path / "here").mkdir()
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        lock_once(tmp_path / "here" / "a" / "run")
    assert not os.listdir(tmp_path / "here")


def test_a_disk_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.lock(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    [line] = capsys.readouterr().out.splitlines()
    assert "cannot be locked here (No locks available): nothing keeps a second process" in line
