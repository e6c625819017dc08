"""Data sets by name. `load` gives a source: its facts, and arrays for the device."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from atkd_jax.data import memory, prepared
from atkd_jax.data.memory import Arrays, MemorySource, epoch_order, eval_order
from atkd_jax.data.spec import KNOWN, with_labels

__all__ = ["DATASETS", "Arrays", "MemorySource", "epoch_order", "eval_order", "load", "tfds_name"]


def _cifar10(data_dir: str | None) -> MemorySource:
    return _from_tfds("cifar10", "train", data_dir)


def _from_tfds(name: str, train: str, data_dir: str | None) -> MemorySource:
    spec = KNOWN[name]
    builder = prepared.prepared(tfds_name(name), data_dir)
    arrays = prepared.read_split(builder, train, spec.num_train, spec.num_classes)
    test = prepared.read_split(builder, "test", spec.num_test, spec.num_classes)
    return MemorySource(with_labels(spec, arrays.label), arrays, test)


def _digits(data_dir: str | None) -> MemorySource:
    del data_dir
    return memory.digits()


def _npz(path: str, data_dir: str | None) -> MemorySource:
    del data_dir
    return memory.npz(path)


# name -> loader(data_dir=..., **options); of "kind:PATH" the kind is looked up here and the loader
# gets PATH first.
DATASETS: dict[str, Callable[..., MemorySource]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "npz:": _npz,
}


def tfds_name(name: str) -> str:
    """What TensorFlow Datasets calls the data set that we call `name`."""
    return {}.get(name, name)


def load(name: str, *, data_dir: str | None = None, **options) -> MemorySource:
    """Loads a data set.

    Args:
      name: a key of `DATASETS`; keys that end in a colon are followed by a path, as in
        "npz:PATH".
      data_dir: where TFDS keeps prepared data sets; None means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      options: what the data set lets one choose.

    Raises:
      ValueError: no such data set or option, or its files are missing or wrong.
    """
    kind, colon, path = name.partition(":")
    key = kind + colon
    if key not in DATASETS:
        close = difflib.get_close_matches(key, DATASETS, 1) or difflib.get_close_matches(
            kind, [k.rstrip(":") for k in DATASETS], 1
        )
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(k + "PATH" if k.endswith(":") else k for k in DATASETS)
        raise ValueError(f"unknown data set {name!r}{hint} Known: {known}")
    args = (path,) if colon else ()
    return DATASETS[key](*args, data_dir=data_dir, **options)
