"""Flags of all commands are checked before anything is written, and mistakes end in one line."""

import argparse
import importlib
import os

import pytest

from atkd_jax.errors import check_known
from atkd_jax.runtime.preemption import Interrupted
from experiments import command


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("demo", "--seeds=0", "'0' is no whole number from 1 to 1000"),
        ("demo", "--workdir={}/file", "file is no folder"),
        ("train_all", "", "required: --weights"),
        ("train_all", "--weights={}/none", "none is no file"),
        ("train_all", "--weights={}/file --methods=kdd", "did you mean 'kd'?"),
        ("train_all", "--weights={}/file --methods=", "no method is named; choose from: none, kd"),
        ("train_all", "--weights={}/file --epochs=0", "'0' is no whole number"),
        ("train_all", "--weights={}/file --workdir={}/file/x", "file is no folder"),
        ("bench_company", "--rounds=0", "'0' is no whole number"),
        ("bench_company", "--students=-1", "'-1' is no whole number"),
        ("bench_company", "--method=none", "invalid choice: 'none'"),
        ("bench_company", "--pair=r20", "invalid choice: 'r20'"),
        ("bench_company", "--ways=alone,vmapp", "did you mean 'vmap'?"),
        ("bench_data", "--rounds=0", "'0' is no whole number"),
        ("bench_data", "--images={}/none", "none is no folder"),
        ("bench_methods", "--rounds=0", "'0' is no whole number"),
        ("bench_methods", "--methods=kd,x", "unknown method 'x'"),
        ("bench_methods", "--teacher=resnet57", "invalid choice: 'resnet57'"),
        ("bench_step", "--seconds=nan", "'nan' is no number from 0"),
        ("bench_step", "--pairs=,", "no pair is named"),
        ("bench_step", "--dtype=float16", "invalid choice: 'float16'"),
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
    assert command.writable("~/a/b") == tmp_path / "a" / "b"
    assert command.folder("~") == tmp_path
    assert command.replicate("~/none") == tmp_path / "none"


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(argparse.ArgumentTypeError, match=f"{tmp_path} cannot be written"):
        command.writable(f"{tmp_path}/a/b")


def test_what_a_person_can_mend_ends_in_one_line_and_a_bug_in_a_trace(capsys):
    with pytest.raises(SystemExit, match="error: unknown method 'kdd'; did you mean 'kd'"):
        with command.in_words():
            check_known("method", "kdd", ["kd"])
    with pytest.raises(SystemExit, match="0"), command.in_words():
        raise Interrupted("saved at step 7 of 9")
    assert capsys.readouterr().out.startswith("stopped: saved at step 7 of 9; the same command")
    with pytest.raises(ZeroDivisionError), command.in_words():
        raise ZeroDivisionError


def test_a_second_interrupt_ends_a_command_with_one_line():
    with pytest.raises(SystemExit, match="stopped at once; the same command goes on"):
        with command.in_words():
            raise KeyboardInterrupt
