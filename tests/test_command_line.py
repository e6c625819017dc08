"""Mistakes end a command in one line, bugs in their traceback; also in a job of several hosts."""

import logging
import os
import signal
import subprocess
import sys

import absl.logging
import numpy as np
import pytest
from small_runs import PATIENCE

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.errors import UserError, check_known
from atkd_jax.runtime import hosts
from atkd_jax.runtime.preemption import Interrupted, stop_signal

ABORT = hosts.abort  # which conftest.py replaces


@pytest.fixture
def job(monkeypatch, capsys):
    """As if this process were one of several: returns what a body leaves on stderr as it aborts."""

    def abort(body):
        with pytest.raises(Aborted), entry_point():
            body()
        return capsys.readouterr().err

    class Aborted(BaseException):
        pass

    def leave(code):
        raise Aborted(code)

    monkeypatch.setattr(hosts, "abort", ABORT)
    monkeypatch.setattr(hosts, "is_multi_host", lambda: True)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts.os, "_exit", leave)
    return abort


def mistake():
    check_known("method", "kdd", ["kd"])


def bug():
    np.ones(2) + np.ones(3)  # a ValueError, which is no UserError


@pytest.mark.parametrize(
    "error", [UserError("a mistake"), OSError("a full disk"), FloatingPointError("a NaN")]
)
def test_what_a_person_can_mend_ends_in_one_line(error):
    with pytest.raises(SystemExit) as ended, entry_point():
        raise error
    assert ended.value.code == f"error: {error}"  # Python prints it, and exits with 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="could not be broadcast"), entry_point():
        bug()
    with pytest.raises(ZeroDivisionError), entry_point():
        raise ZeroDivisionError


def test_in_a_job_both_end_the_process_at_once(job):
    assert job(mistake) == "error: unknown method 'kdd'; did you mean 'kd'?\n"
    traceback = job(bug)
    assert traceback.startswith("Traceback ") and "in bug" in traceback


@pytest.mark.slow
def test_a_failed_command_does_not_wait_for_its_threads():
    code = (
        "import threading; from atkd_jax.command_line import entry_point\n"
        "with entry_point():\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    raise OSError('the disk is full')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1 and done.stderr == "error: the disk is full\n"


def test_a_stopped_run_is_no_failure(capsys):
    with pytest.raises(SystemExit, match="0"), entry_point():
        raise Interrupted("saved at step 7 of 9")
    assert capsys.readouterr().out == (
        "stopped: saved at step 7 of 9; the same command goes on from there\n"
    )


@pytest.fixture
def in_a_terminal():
    """A program that a script starts in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_with_the_commands_own_line(in_a_terminal):
    with pytest.raises(SystemExit, match="^stopped at once; the same command goes on from the"):
        with entry_point(), stop_signal() as stop, stop.hold():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit, match="^stopped; nothing is lost$"):
        with entry_point("stopped; nothing is lost"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def absl_handler():
    """As `app.run` adds it."""
    absl.logging.use_absl_handler()
    yield
    logging.root.removeHandler(absl.logging.get_absl_handler())


def test_warnings_of_ours_have_one_form_and_others_are_quiet(absl_handler, capsys):
    with entry_point():
        logging.getLogger("atkd_jax.nn.native").warning("%s is left out", "a.txt")
        logging.getLogger("another.library").warning("chatter")
        absl.logging.warning("chatter")
    assert capsys.readouterr().err == "warning: a.txt is left out\n"
    assert logging.getLogger("atkd_jax").propagate


def test_a_mistake_in_a_flag_is_one_line(capsys):
    parser = Parser("Does things.")
    parser.add_argument("--seconds", type=number(0, 9, float))
    for text in ("nan", "-1", "10", "x"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([f"--seconds={text}"])
        assert capsys.readouterr().err == (
            f"error: argument --seconds: {text!r} is no number from 0 to 9\n"
        )
    assert parser.parse_args(["--seconds=2"]).seconds == 2
