"""What a run's numbers depend on besides its configuration: its data and its teacher, by digest.

A checkpoint and an export carry a fingerprint. Who goes on from them compares it with what is there
now, so that a number is never about other images, other labels or another teacher than it says.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from atkd_jax.data import MemorySource, Source
from atkd_jax.data.records import FolderRecords, TfdsRecords
from atkd_jax.errors import UserError
from atkd_jax.runtime import hosts
from atkd_jax.runtime.checkpoint import crc32
from atkd_jax.types import PyTree

Facts = dict[str, Any]
MANY = 100_000  # files; to ask a network disk for the size of more takes minutes
# What a difference is told as, the most telling fact first.
DATA = {
    "class_names": "classes",
    "num_train": "number of training images",
    "num_test": "number of test images",
    "image_shape": "shape of an image",
    "train_labels": "labels of the training images (digest)",
    "test_labels": "labels of the test images (digest)",
    "train_images": "training images (digest)",
    "test_images": "test images (digest)",
}
TEACHER = {
    "model": "network",
    "mean": "mean",
    "std": "standard deviation",
    "weights": "weights (checksum)",
}


def of_data(source: Source) -> Facts:
    """Counts, classes in order, and digests: of labels, and of what tells images apart cheaply.

    Images in memory are digested themselves; streamed ones by the names and sizes of their files
    (names alone where there are more than MANY), or of TFDS's shards.
    """
    info = source.info
    facts = {
        "class_names": list(info.class_names),
        "num_train": info.num_train,
        "num_test": info.num_test,
        "image_shape": list(info.image_shape),
    }
    return facts | (_of_arrays(source) if isinstance(source, MemorySource) else _of_records(source))


def _of_arrays(source: MemorySource) -> Facts:
    facts = {}
    for split in ("train", "test"):
        arrays = getattr(source, split)
        facts[f"{split}_labels"] = _digest(np.ascontiguousarray(arrays.label, np.int32))
        facts[f"{split}_images"] = _digest(np.ascontiguousarray(arrays.image))
    return facts


def _of_records(source: Source) -> Facts:
    records, facts = source.records, {}
    for split in ("train", "test"):
        if isinstance(records, FolderRecords):
            files = getattr(records, f"{split}_files")
            root = os.path.commonpath([*records.train_files.path, *records.test_files.path])
            names = [os.fsencode(os.path.relpath(path, root)) for path in files.path]
            if len(names) <= MANY:
                names += [str(os.path.getsize(path)).encode() for path in files.path]
            facts[f"{split}_labels"] = _digest(files.label)
            facts[f"{split}_images"] = _digest(b"\0".join(names))
        elif isinstance(records, TfdsRecords):
            info = records.builder.info.splits[getattr(records, f"{split}_split")]
            shards = [*zip(sorted(info.filenames), info.shard_lengths, strict=True), info.num_bytes]
            facts[f"{split}_images"] = _digest(repr(shards).encode())
    return facts


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def of_teacher(model: str, mean: tuple, std: tuple, variables: PyTree) -> Facts:
    """The network that teaches, by a checksum of its host arrays."""
    checksum = f"{crc32(variables, {}):08x}"
    return {"model": model, "mean": list(mean), "std": list(std), "weights": checksum}


def difference(then: Facts, now: Facts, names: dict[str, str]) -> str | None:
    """The first fact of `names` in which two fingerprints differ, with both sides; None if none.

    Facts that one side does not know are left out.
    """
    for key, name in names.items():
        if key in then and key in now and then[key] != now[key]:
            if key == "class_names":
                return _of_classes(then[key], now[key])
            return f"{name}: {_text(then[key])} then, {_text(now[key])} now"
    return None


def _of_classes(then: list[str], now: list[str]) -> str:
    if len(then) != len(now):
        return f"number of classes: {len(then)} then, {len(now)} now"
    k = next(k for k, (a, b) in enumerate(zip(then, now, strict=True)) if a != b)
    return f"class {k}: {then[k]!r} then, {now[k]!r} now"


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) and value else str(value)


def same_classes(theirs: list[str] | tuple[str, ...], ours: list[str] | tuple[str, ...]) -> bool:
    """Whether class numbers mean the same. Mere numbers, as of an npz file, may mean anything."""
    theirs, ours = list(theirs), list(ours)
    if len(theirs) != len(ours):
        return False
    nameless = [str(k) for k in range(len(ours))]
    return theirs == ours or nameless in (theirs, ours)


def check_resumed(
    workdir: Path, meta: dict, known: dict[str, Facts], step: int, saved: int, total: int
) -> None:
    """Holds a checkpoint to the run that wants to go on from it; says if versions differ.

    Args:
      known: the fingerprints of what is here now: data, teacher, versions.
      step: the checkpoint's name.
      saved: the step that its state is of.
      total: steps of the run.

    Raises:
      UserError: it is of other data or of another teacher, or its number is not its own.
    """
    where = workdir / "checkpoints" / str(step)
    then = meta.get("fingerprint", {})
    if not then:
        hosts.log_once(
            f"{where} does not tell which data and teacher it is of: they were not compared"
        )
    for name, now in known["versions"].items():
        if (was := then.get("versions", {}).get(name, now)) != now:
            hosts.log_once(f"the run began with {name} {was} and goes on with {now}")
    for part, names in (("data", DATA), ("teacher", TEACHER)):
        changed = difference(then.get(part, {}), known.get(part, {}), names)
        if changed:
            raise UserError(
                f"the {part} of the run in {workdir} changed since it began: {changed}. Restore"
                " what it began with, or start another --workdir"
            )
    if saved != step or step > total:
        raise UserError(
            f"{where} was saved at step {saved}, and the run has {total} steps: it was renamed, or"
            " is another run's; move it away"
        )
