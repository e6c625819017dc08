"""The trained student of a finished run, its data, and its outputs in JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import models
from atkd_jax.data import MemorySource, Source
from atkd_jax.errors import UserError
from atkd_jax.models.network import Network
from atkd_jax.nn.platform import portable
from atkd_jax.runtime import checkpoint, fingerprint, run_files
from atkd_jax.training import from_config, teachers
from atkd_jax.types import Array, PyTree

BATCH = 500
# image [1, H, W, 3] uint8 in 0..255 -> logits [1, K] float32
Serve = Callable[[Array], Array]


class Student(NamedTuple):
    """A trained network and its origin.

    Attributes:
      network: the module, computing in float32, and its normalisation.
      variables: {"params", "batch_stats"} as host arrays.
      meta: export/meta.json.
      summary: summary.json of the run.
      source: the data set on which it was trained and tested.
    """

    network: Network
    variables: PyTree
    meta: dict[str, Any]
    summary: dict[str, Any]
    source: Source


def read_summary(workdir: Path) -> dict[str, Any]:
    """summary.json of a finished run; UserError if there is none."""
    run_files.check_folder(workdir)
    summary = run_files.read_summary(workdir)
    if summary is None:
        raise UserError(
            f"{workdir} holds no finished run (there is no summary.json); finish it with"
            f" python -m atkd_jax.main --config=FILE --workdir={workdir}"
        )
    return summary


def read(workdir: Path) -> Student:
    """Reads the student of the run in `workdir`, and opens its data.

    Raises:
      UserError: the run is not finished, or its data have changed since.
    """
    summary = read_summary(workdir)
    meta = checkpoint.read_export_meta(workdir / "export")
    try:
        source = from_config.source(ConfigDict(summary["config"]))
    except AttributeError as error:
        raise UserError(
            f"{workdir} was trained by another version of atkd_jax: its configuration lacks {error}"
        ) from error
    then = {"class_names": list(meta["class_names"])} | meta.get("fingerprint", {}).get("data", {})
    if changed := fingerprint.difference(then, fingerprint.of_data(source), fingerprint.DATA):
        raise UserError(
            f"the data of the run in {workdir} changed since it was trained: {changed}; give the"
            " data it was trained on"
        )
    module = models.create(meta["model"], meta["num_classes"])
    network = Network(module, tuple(meta["mean"]), tuple(meta["std"]))
    abstract = teachers.abstract_variables(network, source.info)
    variables = checkpoint.load_export(workdir / "export", abstract, meta)
    return Student(network, variables, meta, summary, source)


def serving(network: Network, variables: PyTree) -> Serve:
    """The function that a device runs: raw image to logits, including normalisation."""
    # One subtraction and one division: in int8 every further operation would round once more.
    mean, std = (
        255 * np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in (network.mean, network.std)
    )

    def serve(image: Array) -> Array:
        with portable():
            out: Any = network.module.apply(variables, (image.astype(jnp.float32) - mean) / std)
        return out.logits

    return serve


def test_images(source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every test example once, in batches: images [B, H, W, 3] uint8 and labels [B]."""
    if isinstance(source, MemorySource):
        for i in range(0, source.info.num_test, BATCH):
            yield source.test.image[i : i + BATCH], source.test.label[i : i + BATCH]
    else:
        for batch in source.test():
            image, label, mask = map(np.asarray, (batch.image, batch.label, batch.mask))
            yield image[mask], label[mask]


def calibration_images(source: Source, num: int) -> np.ndarray:
    """`num` training images [num, H, W, 3] uint8, or all if there are fewer; always the same ones.

    Raises:
      UserError: `num` is less than 1.
    """
    if num < 1:
        raise UserError(f"calibration={num}: int8 needs training images to take its ranges from")
    if isinstance(source, MemorySource):
        image = source.train.image
        return image[np.random.RandomState(0).permutation(len(image))[:num]]
    size = source.share.batch_size
    return np.concatenate([b.image for b in islice(source.train(0), -(-num // size))])[:num]


def reference(student: Student) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, K] of the network as it was trained, on the test set, and labels [N]."""
    apply = jax.jit(lambda v, image: student.network.apply(v, image / 255.0).logits)
    logits, labels = [], []
    with jax.default_matmul_precision("highest"):
        for image, label in test_images(student.source):
            padded = np.zeros((max(BATCH, len(image)), *image.shape[1:]), np.float32)
            padded[: len(image)] = image
            logits.append(np.asarray(apply(student.variables, padded))[: len(image)])
            labels.append(label)
    return np.concatenate(logits), np.concatenate(labels)
