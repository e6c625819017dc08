"""The command line: what a person reads when a run is stopped."""

import os
import signal

import pytest

from atkd_jax import main
from atkd_jax.signals import Interrupted


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_before_its_first_step_says_one_line(number, monkeypatch, capsys):
    monkeypatch.setattr(main, "train", lambda: send(number))
    main.main(["main"])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("stopped: ") and line.endswith("the same command goes on from there")


def test_a_second_interrupt_ends_with_one_line(monkeypatch, capsys):
    def train():
        try:
            send(signal.SIGINT)
        except Interrupted:
            send(signal.SIGINT)

    monkeypatch.setattr(main, "train", train)
    with pytest.raises(SystemExit):
        main.main(["main"])
    [line] = capsys.readouterr().err.splitlines()
    assert line == "stopped at once; the same command goes on from the last checkpoint"
