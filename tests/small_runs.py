"""Small real runs for the tests: noise images whose classes differ in brightness, ResNet-8."""

import atexit
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from configs import digits

TRAIN, TEST, CLASSES = 96, 20, 3
# Overrides for runs that are compared with each other: float32 noise grows with the rate.
STEADY = ("--config.optimizer.lr=0.005", "--config.data.augment.flip=True")
# On one device ten steps would be one call, and nothing could happen between them.
STEPWISE = ("--config.steps_per_dispatch=1", "--config.checkpoint.every_steps=4")
# Seconds after which a process counts as hung. A guard, not an expectation: a busy machine is slow.
PATIENCE = 900.0
# A meta.json that can be read.
EXPORT_META = {
    "model": "resnet8",
    "num_classes": 2,
    "class_names": ["a", "b"],
    "data": "digits",
    "image_shape": [8, 8, 3],
    "mean": [0, 0.5, 1],
    "std": [1, 0.5, 0.25],
    "top1": 50.0,
}
# Processes are forked from one that has imported everything and started nothing.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["atkd_jax.main"])


def keep_compiled_programs() -> None:
    """Shares what all processes of the tests compile, and keeps it for the next time."""
    import jax
    from jax._src import compiler, distributed

    jax.config.update("jax_compilation_cache_dir", ".cache/jax")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    write = compiler._cache_write

    def write_on_every_host(*args, **kwargs):
        """JAX writes what host 0 compiles only. On CPU other hosts have keys of their own."""
        with mock.patch.object(distributed.global_state, "process_id", 0):
            write(*args, **kwargs)

    compiler._cache_write = write_on_every_host


def write_npz(path: Path, train=TRAIN, test=TEST, classes=CLASSES) -> Path:
    rng = np.random.RandomState(0)
    arrays = {}
    for split, num in (("train", train), ("test", test)):
        label = np.arange(num) % classes
        noise = rng.randint(0, 64, (num, 8, 8, 3))
        arrays[f"x_{split}"] = (noise + 60 * label[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = label
    np.savez(path, **arrays)
    return path


def small_config(npz: Path, method: str = "none"):
    """Four epochs of six steps on one device."""
    config = digits.get_config(f"method={method}")
    config.data.name = f"npz:{npz}"
    config.student = config.teacher.model = "resnet8"
    config.batch_size, config.epochs, config.teacher.epochs = 16, 4, 2
    config.parallel = "none"
    return config


def command(npz: Path, workdir: Path, *overrides: str, method: str = "none") -> list[str]:
    """The same as `small_config`, typed at the command line."""
    return [
        sys.executable,
        "-m",
        "atkd_jax.main",
        f"--config=configs/digits.py:method={method}",
        f"--workdir={workdir}",
        f"--config.data.name=npz:{npz}",
        "--config.student=resnet8",
        "--config.teacher.model=resnet8",
        "--config.batch_size=16",
        "--config.epochs=4",
        "--config.teacher.epochs=2",
        "--config.parallel=none",
        *overrides,
    ]


def run(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, **kwargs), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@dataclasses.dataclass
class Started:
    """A process that runs a command of `command`, and where its words go.

    What libraries in C++ write on stdout or stderr may land in the middle of a line of Python's, so
    each of the three has a file of its own.
    """

    process: multiprocessing.Process
    log: Path

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def said(self) -> str:
        """What Python printed on stdout."""
        return _stream(self.log, "stdout").read_text()

    @property
    def errors(self) -> list[str]:
        """The lines on Python's stderr in which a command says what is wrong."""
        lines = _stream(self.log, "stderr").read_text().splitlines()
        return [line for line in lines if line.startswith("error: ")]

    @property
    def output(self) -> str:
        """All of it, other libraries' words too: to be shown, or searched for a traceback."""
        paths = (*(_stream(self.log, name) for name in ("stdout", "stderr")), self.log)
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def wait(self) -> int:
        """Its exit code; a process that hangs is killed, and the test fails."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(self.output)
        return self.process.exitcode

    def wait_until(self, condition) -> None:
        """Waits for condition() while the process lives."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.alive, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.005)


def _stream(log: Path, name: str) -> Path:
    return log.with_name(f"{log.name}.{name}")


def start(
    arguments: list[str],
    log: Path,
    devices: int = 1,
    prepare=None,
    held: socket.socket | None = None,
) -> Started:
    """Starts a command in a process of its own.

    Args:
      arguments: of `command`.
      log: gets what is not Python's; `log`.stdout and `log`.stderr get what is.
      devices: simulated.
      prepare: called in the process before the command.
      held: stays open as long as the process lives.
    """
    for path in (log, _stream(log, "stdout"), _stream(log, "stderr")):
        path.write_text("")
    process = FORK.Process(target=_main, args=(arguments[2:], log, devices, prepare, held))
    process.start()
    return Started(process, log)


def _main(argv, log, devices, prepare, held):
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (
        _stream(log, name).open("a", buffering=1) for name in ("stdout", "stderr")
    )
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    from atkd_jax import main

    keep_compiled_programs()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if prepare:
        prepare()
    sys.argv = argv
    try:
        main.cli()
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


@contextlib.contextmanager
def held_port() -> Iterator[tuple[int, socket.socket]]:
    """A port for a coordinator, and the socket that keeps everybody else away from it.

    A port that is free and let go can be somebody else's when it is wanted. This socket does not
    listen; with both options, those of the same user that ask for just this port may share it.
    """
    with socket.socket() as held:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            held.setsockopt(socket.SOL_SOCKET, option, 1)
        held.bind(("localhost", 0))
        yield held.getsockname()[1], held


def start_job(arguments: list[str], folder: Path, only_last=(), prepare=None) -> list[Started]:
    """Starts one job of two processes with two devices each, over loopback."""
    folder.mkdir(exist_ok=True)
    with held_port() as (port, held):
        return [
            start(
                [
                    *arguments,
                    f"--coordinator_address=localhost:{port}",
                    "--num_processes=2",
                    f"--process_id={i}",
                    *(only_last if i else ()),
                ],
                folder / f"process{i}.log",
                devices=2,
                prepare=prepare,
                held=held,
            )
            for i in range(2)
        ]


def saved_steps(workdir: Path) -> list[int]:
    """Steps of whole checkpoints."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def saved_state(workdir: Path):
    """The newest checkpoint, as nested dicts of arrays."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.CheckpointManager(workdir.absolute() / "checkpoints") as manager:
        args = ocp.args.Composite(tree=ocp.args.StandardRestore(fallback_sharding=here))
        return manager.restore(manager.latest_step(), args=args)["tree"]


def exported(workdir: Path):
    """The variables of a finished run, as nested dicts of arrays."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    args = ocp.args.StandardRestore(fallback_sharding=here)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(workdir.absolute() / "export" / "variables", args=args)


def same_bits(a, b) -> bool:
    import jax

    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def difference(a, b) -> float:
    """Largest difference of two trees' numbers."""
    import jax

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, float) - np.asarray(y, float)).max()) for x, y in pairs)


def log_without_times(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = ("images_per_second", "waiting_for_data")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def flip(path, place=0.5):
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
