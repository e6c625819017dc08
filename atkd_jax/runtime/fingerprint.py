"""Fingerprints of what a run depends on besides its configuration: its data and its teacher.

Checkpoints and exports contain a fingerprint. Whatever continues from one compares it with the
present data and teacher, so that no result mixes images, labels or teachers.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from atkd_jax.data import MemorySource, Source, StreamSource
from atkd_jax.data.records import FolderRecords, TfdsRecords
from atkd_jax.errors import UserError
from atkd_jax.runtime import hosts
from atkd_jax.runtime.checkpoint import crc32
from atkd_jax.types import PyTree

Facts = dict[str, Any]
MANY = 100_000  # files; reading the sizes of more from a network disk takes minutes
# Names of facts in messages; the most informative difference is reported first.
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
    """Counts, classes in order, and digests of labels and images.

    Images in memory are hashed; of streamed ones, the names and sizes of their files are (names
    alone if there are more than MANY), or those of TFDS's shards.
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


def _of_records(source: StreamSource) -> Facts:
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


def _digest(data: bytes | np.ndarray) -> str:
    # NumPy declares the buffer protocol for Python 3.12 and later only.
    return hashlib.blake2b(data, digest_size=8).hexdigest()  # type: ignore[arg-type]


def of_teacher(model: str, mean: tuple, std: tuple, variables: PyTree) -> Facts:
    """The teacher's network, its normalisation, and a checksum of its host arrays."""
    checksum = f"{crc32(variables, {}):08x}"
    return {"model": model, "mean": list(mean), "std": list(std), "weights": checksum}


def difference(then: Facts, now: Facts, names: dict[str, str]) -> str | None:
    """Describes the first fact of `names` in which two fingerprints differ; None if none does.

    Facts that one side lacks are skipped.
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


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) and value else str(value)


def same_classes(theirs: list[str] | tuple[str, ...], ours: list[str] | tuple[str, ...]) -> bool:
    """Whether class numbers mean the same. Unnamed classes, as of an npz file, match any names."""
    theirs, ours = list(theirs), list(ours)
    if len(theirs) != len(ours):
        return False
    nameless = [str(k) for k in range(len(ours))]
    return theirs == ours or nameless in (theirs, ours)


def check_resumed(
    workdir: Path, meta: dict, known: dict[str, Facts], step: int, saved: int, total: int
) -> None:
    """Checks that a run may resume from a checkpoint; reports versions that differ.

    Args:
      known: the present fingerprints: data, teacher, versions.
      step: the checkpoint's name.
      saved: the step in its state.
      total: steps of the run.

    Raises:
      UserError: it belongs to other data or another teacher, or it was renamed.
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
