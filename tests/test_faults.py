"""What happens to runs, done to real processes: kills, full disks, flipped bits, second starts."""

import contextlib
import dataclasses
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import time

import jax
import pytest
from runs import (
    STEADY,
    command,
    difference,
    flip,
    log_without_times,
    same_bits,
    saved_state,
    saved_steps,
    start,
    start_job,
    write_npz,
)

from atkd_jax import methods, train
from atkd_jax.methods.base import Extras, LossOut, Method
from configs import methods as presets


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "noise.npz", test=1000)


def started(npz, workdir, *overrides, devices=1, prepare=None):
    arguments = command(npz, workdir, *STEADY, *overrides)
    return start(arguments, workdir.with_suffix(".log"), devices, prepare)


def finished(*args, **kwargs):
    """The output of a run that ends well."""
    process = started(*args, **kwargs)
    assert process.wait() == 0, process.output
    return process.output


def refused(*args, **kwargs):
    """The one line of a run that ends badly."""
    process = started(*args, **kwargs)
    assert process.wait() == 1, process.output
    assert "Traceback" not in process.output, process.output
    return process.output.splitlines()[-1]


# Twenty kills in a row. Steps are cheap, starts are what it costs: so there is no teacher.
KILLS, MOMENTS = 20, ("starting", "training", "writing", "evaluating")
CHAIN = ("--config.epochs=20", "--config.checkpoint.every_steps=4", "--config.ema=0.9")


def mark_evaluation(marker):
    """Lets the test see from outside when a process evaluates."""
    make_evaluate = train.make_evaluate

    def make_marked(*args):
        evaluate = make_evaluate(*args)

        def marked(variables):
            marker.touch()
            result = evaluate(variables)
            marker.unlink()
            return result

        return marked

    train.make_evaluate = make_marked


def test_twenty_kills_at_any_moment_change_no_bit(npz, tmp_path):
    finished(npz, tmp_path / "alone", *CHAIN)
    workdir, marker = tmp_path / "killed", tmp_path / "evaluating"
    prepare = functools.partial(mark_evaluation, marker)
    rng = random.Random(time.time_ns())
    hit = dict.fromkeys(MOMENTS, 0)
    whole = {0}  # steps at which a checkpoint was whole when the process was dead

    def writing():
        with contextlib.suppress(FileNotFoundError):
            return any("tmp" in name for name in os.listdir(workdir / "checkpoints"))

    for kill in range(KILLS):
        marker.unlink(missing_ok=True)
        moment = MOMENTS[kill % len(MOMENTS)]
        process = started(npz, workdir, *CHAIN, prepare=prepare)
        if moment == "starting":
            time.sleep(rng.uniform(0.0, 2.0))
        else:
            last = max(whole)
            process.wait_until(lambda last=last: max(saved_steps(workdir), default=0) > last)
            if moment == "training":
                time.sleep(rng.uniform(0.0, 0.05))
            else:
                process.wait_until(writing if moment == "writing" else marker.exists)
                time.sleep(rng.uniform(0.0, 0.005))
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.output
        hit[moment] += (moment == "writing" and writing()) or marker.exists()
        said = re.search(r"going on from step (\d+)", process.output)
        assert not said or int(said[1]) in whole, process.output
        whole = set(saved_steps(workdir)) | {0}
    print(hit, whole)
    assert hit["writing"] and hit["evaluating"]
    output = finished(npz, workdir, *CHAIN)
    assert f"going on from step {max(whole)}" in output
    assert same_bits(saved_state(tmp_path / "alone"), saved_state(workdir))
    assert log_without_times(tmp_path / "alone") == log_without_times(workdir)


def test_other_numbers_of_devices_take_the_same_steps(npz, tmp_path):
    config = ("--config.parallel=shard_map", "--config.checkpoint.every_steps=2")
    finished(npz, tmp_path / "one", *config)
    workdir = tmp_path / "changing"
    for devices in (1, 4):
        process = started(npz, workdir, *config, devices=devices)
        last = max(saved_steps(workdir), default=0)
        process.wait_until(lambda last=last: max(saved_steps(workdir), default=0) > last)
        process.send(signal.SIGTERM)
        assert process.wait() == 0 and "stopped: saved" in process.output, process.output
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


def test_a_full_disk_stops_the_run_and_spoils_nothing(npz, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=1600k"):  # a checkpoint takes about 600 kB
        workdir = disk / "run"
        arguments = command(npz, workdir, *STEADY)
        process = start(arguments, tmp_path / "log")
        assert process.wait() == 1, process.output
        # TensorBoard's writer may complain once more, at the very end.
        line = next(x for x in process.output.splitlines() if x.startswith("error: "))
        assert "cannot be written" in line and "No space left" in line, process.output
        assert "what was saved before is good" in line
        good = saved_steps(workdir)[-1]
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        process = start(arguments, tmp_path / "log")
        assert process.wait() == 0, process.output
        assert f"going on from step {good}" in process.output
        finished(npz, tmp_path / "alone")
        assert same_bits(saved_state(tmp_path / "alone"), saved_state(workdir))


def test_a_workdir_that_cannot_be_written_is_refused(npz, tmp_path):
    with mounted(tmp_path / "disk", "ro"):
        process = start(command(npz, tmp_path / "disk" / "run"), tmp_path / "log")
        assert process.wait() == 1
        assert process.output.splitlines() == [
            f"error: --workdir {tmp_path}/disk/run cannot be written: Read-only file system"
        ]


def test_a_second_process_in_the_same_workdir_is_refused(npz, tmp_path):
    workdir = tmp_path / "run"
    first = started(npz, workdir, "--config.epochs=1000")
    first.wait_until(lambda: saved_steps(workdir))
    second = start(command(npz, workdir, *STEADY, "--config.epochs=1000"), tmp_path / "second.log")
    assert second.wait() == 1
    assert f"{workdir} is in use by process {first.process.pid}" in second.output
    assert len(second.output.splitlines()) == 1
    first.send(signal.SIGKILL)
    first.wait()
    third = started(npz, workdir, "--config.epochs=1000")
    third.wait_until(lambda: "going on from step" in third.output)
    third.send(signal.SIGKILL)
    third.wait()


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

    axis_name: str | None = None

    def init(self, rng, t, s, data):
        return Extras({}, {"step": jax.numpy.int32(0)})

    def loss(self, extras, t, s, batch, rng):
        step = extras.state["step"]
        here = (jax.lax.axis_index(self.axis_name) == 2) & (step == 3)
        return LossOut(jax.numpy.where(here, jax.numpy.nan, 0.0), {"step": step + 1}, {})


def add_trip():
    """Makes the method known to the process and to its configuration."""
    methods.METHODS["trip"] = Trip
    presets.METHODS["trip"], presets.FIELDS["trip"] = presets.alone("trip", 1.0), {}


def test_a_loss_that_is_not_finite_on_one_device_stops_all(npz, tmp_path):
    config = ("--config.parallel=shard_map", "--config.checkpoint.every_steps=2")
    arguments = command(npz, tmp_path / "run", *STEADY, *config, method="trip")
    job = start_job([*arguments, "--config.teacher.epochs=1"], tmp_path, prepare=add_trip)
    for process in job:
        assert process.wait() == 1, process.output
        line = process.output.splitlines()[-1]
        assert "the loss is not finite at step 3 (in: trip)" in line, process.output
        assert "the checkpoint of step 2 is kept" in line
    assert saved_steps(tmp_path / "run") == [2]
