"""A signal ends a run where it may, and is remembered where it may not."""

import os
import signal

import pytest

from atkd_jax.runtime.preemption import Interrupted, stop_signal

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def send(number):
    os.kill(os.getpid(), number)


@BOTH
def test_between_stages_a_signal_ends_the_run_at_once(number):
    with pytest.raises(Interrupted), stop_signal():
        send(number)


@BOTH
def test_while_it_is_held_a_signal_is_only_noted(number):
    with stop_signal() as stop:
        with stop.hold():
            send(number)
            assert stop.asked
        with pytest.raises(Interrupted):
            stop.check()


def test_a_signal_outlives_the_stage_it_came_in():
    with stop_signal() as outer:
        with stop_signal() as stage, stage.hold():
            send(signal.SIGTERM)
        assert outer.asked and not outer.held
    with stop_signal() as later:
        assert not later.asked


def test_a_second_interrupt_does_not_wait():
    with stop_signal() as stop, stop.hold():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGTERM)  # a second SIGTERM has nothing to add


def test_the_handlers_from_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
