"""What happens to runs, done to real processes: kills, full disks, flipped bits, second starts."""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess

import jax
import pytest
from counts import counts
from moments import Moment, arm
from small_runs import (
    STEADY,
    STEPWISE,
    command,
    difference,
    flip,
    same_bits,
    saved_state,
    saved_steps,
    start,
    start_job,
)

from atkd_jax import methods
from atkd_jax.methods.base import LossOut, Method
from configs import methods as presets


def started(npz, workdir, *overrides, devices=1, prepare=None):
    arguments = command(npz, workdir, *STEADY, *overrides)
    return start(arguments, workdir.with_suffix(".log"), devices, prepare)


def finished(*args, **kwargs):
    """What a run that ends well says."""
    process = started(*args, **kwargs)
    assert process.wait() == 0, process.output
    return process.said


def refused(*args, **kwargs):
    """The one line of a run that ends badly."""
    process = started(*args, **kwargs)
    assert process.wait() == 1, process.output
    assert "Traceback" not in process.output, process.output
    [line] = process.errors
    return line


# Steps are cheap, starts are what twenty kills cost: so there is no teacher.
CHAIN = (*STEPWISE, "--config.epochs=40", "--config.ema=0.9")


def twenty_moments(workdir, last, rng):
    """Ten that hit every kind of moment, and ten that are drawn.

    Args:
      last: the last student's folder.
    """
    checkpoints, log = "/checkpoints", f"{last}/metrics"
    known = [
        Moment("file", 1, f"{workdir}"),
        Moment("os.rename", 1, f"{last}/config"),
        Moment("step", 1),
        Moment("os.mkdir", 3, checkpoints),
        Moment("step", 8),
        Moment("os.rename", 1, checkpoints),
        Moment("test", 1),
        Moment("open", 2, log),
        Moment("os.rename", 3, checkpoints),
        Moment("shutil.rmtree", 1, checkpoints),
    ]
    drawn = [Moment("file", rng.randint(10, 70), f"{workdir}") for _ in range(5)]
    drawn += [Moment("step", rng.randint(4, 12), seconds=rng.uniform(0, 0.05)) for _ in range(5)]
    return known, drawn


@pytest.mark.slow
@counts
def test_twenty_kills_at_any_moment_change_no_bit(count, npz, tmp_path, rng):
    finished(npz, tmp_path / "alone", *CHAIN, prepare=count)
    workdir = tmp_path / "killed"
    at_the_latest = Moment("step", 20)  # where the clock is slow, the run must not end before
    whole = {0}  # steps at which a checkpoint was whole when the process was dead
    known, drawn = twenty_moments(workdir, count.workdirs(workdir)[-1], rng)
    for moment in itertools.chain(*zip(drawn, known, strict=True)):
        print(f"whole: {sorted(whole)}; next: {moment}")  # seen when the test fails
        prepare = functools.partial(arm, count, moment, at_the_latest)
        process = started(npz, workdir, *CHAIN, prepare=prepare)
        assert process.wait() == -signal.SIGKILL, process.output
        assert moment in drawn or str(moment) in process.said, process.output
        said = re.search(r"going on from step (\d+)", process.said)
        assert not said or int(said[1]) in whole, process.output
        whole = set(count.saved_steps(workdir)) | {0}
    output = finished(npz, workdir, *CHAIN, prepare=count)
    assert f"going on from step {max(whole)}" in output
    assert_same_results(count, tmp_path / "alone", workdir)


def assert_same_results(count, one, other):
    """Of two finished runs."""
    (arrays, rows), (others, other_rows) = count.results(one), count.results(other)
    assert all(map(same_bits, arrays, others))
    assert rows == other_rows


@pytest.mark.slow
@counts
def test_a_kill_at_the_very_end_changes_no_bit(count, npz, tmp_path):
    """Of several students, one has its summary and the last has none."""
    short = (*STEPWISE, "--config.epochs=1")
    finished(npz, tmp_path / "alone", *short, prepare=count)
    workdir = tmp_path / "killed"
    last = count.workdirs(workdir)[-1]
    for moment in (Moment("os.rename", 1, f"{last}/summary"), Moment("os.mkdir", 1, f"{last}/exp")):
        process = started(npz, workdir, *short, prepare=functools.partial(arm, count, moment))
        assert process.wait() == -signal.SIGKILL, process.output
        assert not (last / "summary.json").exists()
    assert "going on from step 6" in finished(npz, workdir, *short, prepare=count)
    assert_same_results(count, tmp_path / "alone", workdir)
    assert not list(workdir.glob("together-*"))


@pytest.mark.slow
def test_other_numbers_of_devices_take_the_same_steps(npz, tmp_path):
    config = (*STEPWISE, "--config.epochs=2", "--config.parallel=shard_map")
    finished(npz, tmp_path / "one", *config)
    workdir = tmp_path / "changing"
    for devices in (1, 4):
        stop = Moment("step", 3, number=signal.SIGTERM)
        said = finished(npz, workdir, *config, devices=devices, prepare=stop)
        assert "stopped: saved" in said
    assert "going on" in finished(npz, workdir, *config, devices=2)
    one, changing = saved_state(tmp_path / "one"), saved_state(workdir)
    assert difference(one["params"], changing["params"]) < 1e-5


@contextlib.contextmanager
def mounted(folder, options):
    """A file system in memory at `folder`, for those who may mount one."""
    folder.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(call, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@counts
def test_a_full_disk_stops_the_run_and_spoils_nothing(count, npz, tmp_path):
    disk = tmp_path / "disk"
    # Room for two checkpoints, each of about 600 kB a student, and not for a third.
    with mounted(disk, f"size={1600 * count.students}k"):
        workdir = disk / "run"
        arguments = command(npz, workdir, *STEADY)
        process = start(arguments, tmp_path / "log", prepare=count)
        assert process.wait() == 1, process.output
        [line] = process.errors
        assert "cannot be written" in line and "No space left" in line, process.output
        assert "what was saved before is good" in line
        good = count.saved_steps(workdir)[-1]
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        process = start(arguments, tmp_path / "log", prepare=count)
        assert process.wait() == 0, process.output
        assert f"going on from step {good}" in process.said
        finished(npz, tmp_path / "alone", prepare=count)
        assert_same_results(count, tmp_path / "alone", workdir)


@pytest.mark.slow
def test_a_workdir_that_cannot_be_written_is_refused(npz, tmp_path):
    with mounted(tmp_path / "disk", "ro"):
        process = start(command(npz, tmp_path / "disk" / "run"), tmp_path / "log")
        assert process.wait() == 1
        assert process.errors == [
            f"error: --workdir {tmp_path}/disk/run cannot be written: Read-only file system"
        ]


@pytest.mark.slow
def test_a_second_process_in_the_same_workdir_is_refused(npz, tmp_path):
    workdir = tmp_path / "run"
    # Before step 14 the checkpoint of step 12 was begun, so the one of step 8 is whole.
    asleep = Moment("step", 14, number=signal.SIGSTOP)
    first = started(npz, workdir, *STEPWISE, prepare=asleep)
    first.wait_until(lambda: saved_steps(workdir))
    second = start(command(npz, workdir, *STEADY), tmp_path / "second.log")
    assert second.wait() == 1
    [line] = second.errors
    assert f"{workdir} is in use by process {first.process.pid}" in line
    assert "Traceback" not in second.output
    first.send(signal.SIGKILL)
    first.wait()
    assert "going on from step" in finished(npz, workdir)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_used_only_if_moved_away(npz, tmp_path):
    workdir = tmp_path / "run"
    finished(npz, workdir)
    (workdir / "summary.json").unlink()
    shutil.copytree(workdir, tmp_path / "alone")
    largest = max(workdir.glob("checkpoints/24/tree/ocdbt.process_0/d/*"), key=os.path.getsize)
    largest.rename(tmp_path / "lost")
    assert f"checkpoint {workdir}/checkpoints/24 is damaged" in refused(npz, workdir)
    (tmp_path / "lost").rename(largest)
    flip(largest)
    line = refused(npz, workdir)
    assert f"checkpoint {workdir}/checkpoints/24 is damaged" in line and "checksum" in line
    assert refused(npz, workdir) == line
    subprocess.run(re.search("mv .*", line)[0].split(), check=True)
    assert "going on from step 18" in finished(npz, workdir)
    assert same_bits(saved_state(tmp_path / "alone"), saved_state(workdir))


@dataclasses.dataclass(frozen=True)
class Trip(Method):
    """A loss that is not a number on the third device at step 3."""

    def loss(self, extras, t, s, batch, ctx):
        here = (ctx.axis.index() == 2) & (ctx.step == 3)
        return LossOut(jax.numpy.where(here, jax.numpy.nan, 0.0))


def add_trip():
    """Makes the method known to the process and to its configuration."""
    methods.METHODS["trip"] = Trip
    presets.METHODS["trip"] = presets.alone("trip", 1.0)


@pytest.mark.slow
@pytest.mark.hosts
def test_a_loss_that_is_not_finite_on_one_device_stops_all(npz, tmp_path):
    config = ("--config.parallel=shard_map", "--config.checkpoint.every_steps=2")
    arguments = command(npz, tmp_path / "run", *STEADY, *config, method="trip")
    job = start_job([*arguments, "--config.teacher.epochs=1"], tmp_path, prepare=add_trip)
    for process in job:
        assert process.wait() == 1, process.output
        [line] = process.errors
        assert "the loss is not finite at step 3 (in: trip)" in line, process.output
        assert "the checkpoint of step 2 is kept" in line
    assert saved_steps(tmp_path / "run") == [2]
