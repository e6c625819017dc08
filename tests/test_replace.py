"""A folder is replaced whole: whatever interrupts it, the last good one survives."""

import json
import os
import shutil

import pytest

from atkd_jax.runtime import replace

CALLS = ("rename", "mkdir", "unlink", "rmdir")


def own(folder):
    try:
        return [*json.loads((folder / "report.json").read_text()), "report.json"]
    except FileNotFoundError:
        return []


def build(folder, version):
    """A new version: a file, a folder, and the report that names them."""
    with replace.replacing(folder, own) as draft:
        (draft / "a.txt").write_text(version)
        (draft / "deep").mkdir()
        (draft / "deep" / "b.txt").write_text(version)
        (draft / "report.json").write_text(json.dumps(["a.txt", "deep"]))


def put_foreign(folder):
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "photo").write_text("photo")
    (folder / "notes.txt").write_text("notes")


FOREIGN = {"mine/photo": "photo", "notes.txt": "notes"}


def version(text):
    return {"a.txt": text, "deep/b.txt": text, "report.json": '["a.txt", "deep"]'}


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """Ends a process, as far as it can be played: nothing that it would do later happens."""


class Killer:
    """From its n-th call on, no function that changes a folder works any more."""

    def __init__(self, monkeypatch, at):
        self.left = at
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left <= 0:
                raise Killed
            return function(*args, **kwargs)

        return call


def moments(tmp_path, monkeypatch, begin, act):
    """Kills `act` at each of its calls in turn; yields the folder as the kill has left it."""
    for at in range(1, 100):
        folder = tmp_path / str(at) / "device"
        begin(folder)
        with monkeypatch.context() as patch:
            Killer(patch, at)
            try:
                act(folder)
            except Killed:
                done = False
            else:
                done = True
        if done:
            assert at > 5
            return
        yield folder


def test_a_kill_at_any_moment_loses_neither_a_result_nor_a_file(tmp_path, monkeypatch):
    def begin(folder):
        build(folder, "one")
        put_foreign(folder)

    left = set()
    for folder in moments(tmp_path, monkeypatch, begin, lambda folder: build(folder, "two")):
        left |= {path.name for path in folder.parent.iterdir()}
        replace.recover(folder, own)  # all that the next command does before it fails
        found = content(folder)
        assert found in (version("one") | FOREIGN, version("two") | FOREIGN)
        assert os.listdir(folder.parent) == ["device"]
        build(folder, "three")
        assert content(folder) == version("three") | FOREIGN
    assert left == {"device", "device.atkd-draft", "device.atkd-old"}


def test_a_kill_of_the_recovery_loses_nothing_either(tmp_path, monkeypatch):
    def begin(folder):  # killed before the last file of the user's moved
        build(folder, "two")
        old = folder.with_name("device.atkd-old")
        build(old, "one")
        put_foreign(old)

    for folder in moments(tmp_path, monkeypatch, begin, lambda f: replace.recover(f, own)):
        replace.recover(folder, own)
        assert content(folder) == version("two") | FOREIGN
        assert os.listdir(folder.parent) == ["device"]


def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path):
    build(tmp_path / "device", "one")
    put_foreign(tmp_path / "device")
    with pytest.raises(KeyError):
        with replace.replacing(tmp_path / "device", own) as draft:
            (draft / "a.txt").write_text("two")
            raise KeyError
    assert content(tmp_path) == {f"device/{k}": v for k, v in (version("one") | FOREIGN).items()}


@pytest.mark.parametrize("call", range(1, 4))
def test_a_disk_that_fails_during_the_swap_gives_the_old_folder_back(tmp_path, monkeypatch, call):
    folder = tmp_path / "device"
    build(folder, "one")
    put_foreign(folder)
    rename, calls = os.rename, []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return rename(*args, **kwargs)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="No space"):
        build(folder, "two")
    assert content(folder) in (version("one") | FOREIGN, version("two") | FOREIGN)
    assert os.listdir(tmp_path) == ["device"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    folder = tmp_path / "device"
    put_foreign(folder)
    (folder / "a.txt").write_text("the user's own")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="device/a.txt is in the way: it is not from an earlier"):
        build(folder, "one")
    assert content(tmp_path) == before
    (folder / "a.txt").unlink()
    build(folder, "one")
    assert content(folder) == version("one") | FOREIGN
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(ValueError, match="is a file where a folder"):
        build(folder, "one")
    assert content(tmp_path) == {"device": "a file"}


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "device"
    folder.symlink_to(tmp_path / "elsewhere")
    put_foreign(folder)
    for text in ("one", "two"):
        build(folder, text)
        assert folder.is_symlink() and content(tmp_path / "elsewhere") == version(text) | FOREIGN
    assert sorted(os.listdir(tmp_path)) == ["device", "elsewhere"]
