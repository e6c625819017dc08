"""Walks through the writes of a run and lets the disk be full at one after another.

Runs with the library of full_disk.c preloaded: LIBRARY is its path, and the processes that `runs`
starts inherit it. Prints one JSON line per failure.

    LD_PRELOAD=LIBRARY python tests/full_disk.py {layer,places,all} FOLDER [STRIDE]
"""

import ctypes
import functools
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from small_runs import STEADY, command, log_without_times, same_bits, saved_state, start, write_npz

from atkd_jax.runtime import checkpoint, lock, run_files
from atkd_jax.runtime.events import Events
from configs import digits

LIBRARY = os.environ["LD_PRELOAD"]
# One of every kind of file, in the order in which a run writes them.
PLACES = (
    "open /lock ",
    "rename /config.json ",
    "mkdir /checkpoints/6",
    "write /checkpoints/6.orbax-checkpoint-tmp/tree.orbax-checkpoint-tmp/ocdbt.process_0/d/",
    "write /checkpoints/6.orbax-checkpoint-tmp/meta.orbax-checkpoint-tmp/metadata ",
    "write /metrics.jsonl ",
    "fsync /tensorboard/",
    "rename /checkpoints/12 ",
    "mkdir /export",
    "rename /export ",
    "write /summary.draft ",
)


def arm(folder: Path, match: str, number: int, log: Path) -> None:
    """From now on, the call with this number fails of those that match; 0 for none."""
    shim = ctypes.CDLL(LIBRARY)
    number = ctypes.c_long(number)
    shim.full_disk_arm(*map(os.fsencode, (folder, match)), number, number, os.fsencode(log))


def failed(log: Path) -> str | None:
    """The call that did fail."""
    lines = [x for x in log.read_text().splitlines() if x.endswith(" FAILS")]
    return lines[0].removesuffix(" FAILS") if lines else None


def tell(**found) -> None:
    print(json.dumps(found), flush=True)


def write_all(folder: Path) -> None:
    """Everything that a run writes, without the run."""
    tree = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.int32(3)}
    meta = dict(model="m", num_classes=2, class_names=["a", "b"], data="d", top1=1.0)
    meta |= dict(image_shape=[8, 8, 3], mean=[0.5] * 3, std=[0.5] * 3)
    with run_files.disk_errors(folder), lock.lock(folder):
        run_files.write_json(folder / "config.json", digits.get_config().to_dict())
        events = Events(folder / "tensorboard", 1)
        checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
        for step in range((checkpoints.latest() or 0) + 1, 4):
            events.scalars({"loss": 1.0}, step)
            run_files.write_arrays(folder, step, {"matrix": np.eye(2)})
            checkpoints.save(step, tree, {"history": [step]})
        checkpoints.close()
        events.close()
        checkpoint.save_export(folder / "export", tree, meta)
        run_files.write_json(folder / "summary.json", meta)


def result(folder: Path):
    """What must be the same in the end."""
    like = {"w": np.zeros((3, 4), np.float32), "step": np.int32(0)}
    names = sorted(str(p.relative_to(folder)) for p in folder.iterdir())
    arrays = dict(np.load(folder / "epochs" / "0004.npz"))
    return names, arrays, saved_state(folder), checkpoint.load_export(folder / "export", like)


def layer(folder: Path, stride: int) -> None:
    """In this process, which is cheap: every `stride`-th call of `write_all`."""
    write_all(folder / "good")
    good, log = result(folder / "good"), folder / "log"
    for number in range(1, 10_000, stride):
        path, error = folder / str(number), None
        arm(path, "", number, log)
        try:
            write_all(path)
        except (OSError, ValueError) as caught:
            error = str(caught)
        arm(path, "", 0, log.with_suffix(".not"))
        if (call := failed(log)) is None:
            break
        # TensorStore remembers files of the failed attempt, which a new process would not.
        path.mkdir(exist_ok=True)
        path = path.rename(folder / f"{number}-again")
        write_all(path)
        names, arrays, state, exported = result(path)
        same = names == good[0] and same_bits((arrays, state, exported), good[1:])
        tell(call=call, error=error, same=same)
        shutil.rmtree(path)


def attempt(npz: Path, path: Path, match: str, number: int):
    """One start of a real command: exit code, output, the call that failed."""
    log, trace = path.with_suffix(".log"), path.with_suffix(".trace")
    prepare = functools.partial(arm, path, match, number, trace)
    arguments = command(npz, path, *STEADY, "--config.epochs=2")
    process = start(arguments, log, prepare=prepare)
    code = process.wait()
    return code, process.output, failed(trace)


def unlike(good: Path, path: Path) -> str:
    """In what two finished runs differ."""
    if not same_bits(saved_state(good), saved_state(path)):
        return "the state"
    if log_without_times(good) != log_without_times(path):
        return "the log"
    metas = [checkpoint.read_export_meta(folder / "export") for folder in (good, path)]
    if metas[0] != metas[1]:  # the checksum of the network is in it
        return "the export"
    return "" if sorted(os.listdir(good)) == sorted(os.listdir(path)) else "the names of files"


def places(folder: Path) -> None:
    """One run that meets a full disk at every one of PLACES in turn, and is started again."""
    npz = write_npz(folder / "noise.npz")
    attempt(npz, folder / "good", "", 0)
    for match in PLACES:
        code, output, call = attempt(npz, folder / "run", match, 1)
        tell(call=call, match=match, code=code, output=output)
    code, output, _ = attempt(npz, folder / "run", "", 0)
    tell(code=code, output=output, unlike=unlike(folder / "good", folder / "run"))


def everything(folder: Path, stride: int) -> None:
    """A run of its own for every `stride`-th call of the command, and its second start."""
    npz = write_npz(folder / "noise.npz")
    attempt(npz, folder / "good", "", 0)
    for number in range(1, 10_000, stride):
        path = folder / f"run{number}"
        code, output, call = attempt(npz, path, "", number)
        if call is None:
            break
        again, more, _ = attempt(npz, path, "", 0)
        different = unlike(folder / "good", path) if again == 0 else more
        tell(number=number, call=call, code=code, output=output, again=again, unlike=different)
        shutil.rmtree(path)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    mode, where = sys.argv[1], Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    step = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    if mode == "layer":
        layer(where, step)
    elif mode == "places":
        places(where)
    else:
        everything(where, step)
