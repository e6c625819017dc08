"""Flags of all commands are checked before anything is written, and mistakes end in one line."""

import argparse
import importlib
import os

import pytest

from experiments import arguments
from experiments.report import generate

LEARNS = "benchmarks.every_method_learns"


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("demo", "--seeds=0", "'0' is no whole number from 1 to 1000"),
        ("demo", "--workdir={}/file", "file is no folder"),
        (LEARNS, "", "required: --weights"),
        (LEARNS, "--weights={}/none", "none is no file"),
        (LEARNS, "--weights={}/file --methods=kdd", "did you mean 'kd'?"),
        (LEARNS, "--weights={}/file --methods=", "no method is named; choose from: none, kd"),
        (LEARNS, "--weights={}/file --epochs=0", "'0' is no whole number"),
        (LEARNS, "--weights={}/file --workdir={}/file/x", "file is no folder"),
        ("benchmarks.shared_teacher", "--seconds=-1", "'-1' is no number from 0"),
        ("benchmarks.shared_teacher", "--students=-1", "'-1' is no whole number"),
        ("benchmarks.shared_teacher", "--teacher=resnet57", "invalid choice: 'resnet57'"),
        ("benchmarks.batched_students", "--students=1", "'1' is no whole number"),
        ("benchmarks.batched_students", "--student=resnet9", "invalid choice: 'resnet9'"),
        ("benchmarks.convolutions", "--batch=0", "'0' is no whole number"),
        ("benchmarks.data", "--rounds=0", "'0' is no whole number"),
        ("benchmarks.data", "--images={}/none", "none is no folder"),
        ("benchmarks.methods", "--rounds=0", "'0' is no whole number"),
        ("benchmarks.methods", "--methods=kd,x", "unknown method 'x'"),
        ("benchmarks.methods", "--teacher=resnet57", "invalid choice: 'resnet57'"),
        ("benchmarks.step", "--seconds=nan", "'nan' is no number from 0"),
        ("benchmarks.step", "--pairs=,", "no pair is named"),
        ("benchmarks.step", "--dtype=float16", "invalid choice: 'float16'"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line_and_writes_nothing(
    tmp_path, monkeypatch, capsys, name, flags, message
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *flags.format(*[tmp_path] * 2).split()])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"experiments.{name}").main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tilde_in_a_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.writable("~/a/b") == tmp_path / "a" / "b"
    assert arguments.folder("~") == tmp_path
    assert generate.readable("~/none") == tmp_path / "none"


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(argparse.ArgumentTypeError, match=f"{tmp_path} cannot be written"):
        arguments.writable(f"{tmp_path}/a/b")
