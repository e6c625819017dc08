"""Data sets that TensorFlow Datasets has prepared on disk: found, downloaded, read, checked.

TensorFlow is imported by these functions and by nothing else that loads at start, and never sees an
accelerator.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import NamedTuple

import numpy as np

from atkd_jax.data import cifar_binary
from atkd_jax.data.memory import Arrays


@functools.cache
def import_tf() -> tuple[ModuleType, ModuleType]:
    """TensorFlow and TensorFlow Datasets, with every accelerator hidden from them.

    Raises:
      ValueError: they are not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and it greets
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except Exception as error:  # a TensorFlow that does not fit its libraries raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"this data set is read with TensorFlow, which cannot be imported ({reason}):"
            " pip install tensorflow-cpu tensorflow-datasets importlib_resources;"
            " digits, npz:PATH and folder:PATH of images of one size need neither"
        ) from None
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf, tfds


def prepare_command(name: str) -> str:
    """What to type to get the data set that TFDS calls `name` onto the disk."""
    return f"python -m atkd_jax.data.prepare {'svhn' if name == 'svhn_cropped' else name}"


def find_builder(name: str, data_dir: str | None = None):
    """The TFDS builder called `name`, unprepared or prepared.

    Args:
      data_dir: where TFDS keeps its data sets; None means $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      ValueError: TFDS knows no such data set, or is not installed.
    """
    try:
        _, tfds = import_tf()
    except ValueError as error:
        if name not in cifar_binary.LAYOUTS:
            raise
        raise ValueError(
            f"{name} without TensorFlow: {cifar_binary.advice(name, data_dir)}. Otherwise: {error}"
        ) from None
    if name == "cinic10":
        importlib.import_module("atkd_jax.data.cinic10")  # registers it
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(
            f"TensorFlow Datasets knows no data set {name!r}, and none of that name is in"
            f" {data_dir or tfds.core.constants.DATA_DIR}"
        ) from None


def is_prepared(name: str, data_dir: str | None = None) -> bool:
    """Whether the data set is prepared and can be read. TensorFlow is only asked if it may be."""
    if not (cifar_binary.folder_of(data_dir) / name).is_dir():
        return False
    try:
        return find_builder(name, data_dir).is_prepared()
    except ValueError:
        return False


def on_disk(name: str, data_dir: str | None = None):
    """The TFDS builder of a data set that is on the disk; nothing is downloaded.

    Raises:
      ValueError: it is not there; the message says what to do.
    """
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        raise ValueError(
            f"{builder.name} is not prepared in {builder.data_path.parent.parent}; run: "
            + prepare_command(builder.name)
            + _or_binary(builder)
        )
    return builder


def prepared(name: str, data_dir: str | None = None):
    """The TFDS builder of a data set that is on the disk; downloads it where that is possible.

    Raises:
      ValueError: it is not there and cannot be had, or what is there is half of it.
    """
    builder = find_builder(name, data_dir)
    if not builder.data_path.exists():
        download(builder)
    elif not builder.is_prepared():
        raise damaged(builder, "its dataset_info.json is missing")
    return builder


def download(builder, manual_dir: str | None = None) -> None:
    """Downloads and prepares, or takes the archives from `manual_dir` under their upstream names.

    Raises:
      ValueError: it could not; the message says what to do.
    """
    _, tfds = import_tf()
    if manual_dir is None:
        _check_reachable(builder)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # TFDS raises whatever its libraries raise
        reason = " ".join(str(error).split())[:300]
        raise _not_downloaded(builder, f"{type(error).__name__}: {reason}") from error


def _check_reachable(builder) -> None:
    """One request that is allowed to fail: TFDS itself would go on trying for minutes."""
    import requests

    for url in list(builder.url_infos or {})[:1]:
        try:
            requests.head(url, timeout=10)
        except requests.RequestException:
            raise _not_downloaded(builder, f"{url.split('/')[2]} cannot be reached") from None


def _not_downloaded(builder, reason: str) -> ValueError:
    return ValueError(
        f"{builder.name} is not in {builder.data_path.parent.parent} and could not be downloaded"
        f" ({reason}). Where there is a network run: {prepare_command(builder.name)}; or bring the"
        f" archives by hand and add --manual_dir DIR{_or_binary(builder)}"
    )


def _or_binary(builder) -> str:
    """The other way to have CIFAR; nothing for other sets."""
    if builder.name not in cifar_binary.LAYOUTS:
        return ""
    return f"; or {cifar_binary.advice(builder.name, builder.data_path.parent.parent)}"


def damaged(builder, what: str) -> ValueError:
    """The error for a prepared data set that cannot be what TFDS wrote."""
    return ValueError(
        f"the prepared {builder.name} in {builder.data_path} is damaged: {what}."
        f" Move that folder away and run: {prepare_command(builder.name)}"
    )


class Facts(NamedTuple):
    """What a TFDS builder says of itself; `image_shape` holds None where images differ in size."""

    image_key: str
    label_key: str
    image_shape: tuple[int | None, ...]
    class_names: tuple[str, ...]
    num_train: int
    num_test: int


def facts(builder, train: str, test: str) -> Facts:
    """What one has to know to read a classification set with the given two splits.

    Raises:
      ValueError: it is none, or has no such split.
    """
    _, tfds = import_tf()
    info = builder.info
    for split in (train, test):
        if split not in info.splits:
            raise ValueError(
                f"{builder.name} has no split {split!r}, but {', '.join(sorted(info.splits))}"
            )
    keys = info.supervised_keys or ("image", "label")
    image, label = (dict(info.features.items()).get(key) for key in keys[:2])
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(f"{builder.name} is no set of images with one class each: {info.features}")
    return Facts(
        *keys[:2],
        image.shape,
        tuple(label.names),
        info.splits[train].num_examples,
        info.splits[test].num_examples,
    )


def read_split(
    builder,
    split: str,
    num: int,
    num_classes: int,
    image_key: str = "image",
    label_key: str = "label",
) -> Arrays:
    """One split decoded into memory, in the order of the files; grey images get three channels.

    Args:
      split: in TFDS's notation, e.g. "train" or "train+extra".
      num: how many examples there have to be.
      num_classes: labels have to lie in 0..num_classes - 1.
      image_key, label_key: names of features.

    Raises:
      ValueError: files are missing or cut off, or the examples are not as many or not what they
        have to be.
    """
    tf, tfds = import_tf()
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    images, labels = [], []
    try:
        data = builder.as_dataset(split=split, batch_size=1000, read_config=config)
        for batch in tfds.as_numpy(data):
            images.append(batch[image_key])
            labels.append(batch[label_key].astype(np.int32))
    except (tf.errors.OpError, ValueError) as error:
        raise damaged(builder, f"split {split}, {' '.join(str(error).split())[:300]}") from None
    image, label = np.concatenate(images), np.concatenate(labels)
    if len(label) != num:
        raise damaged(builder, f"split {split} holds {len(label)} examples instead of {num}")
    if label.min() < 0 or label.max() >= num_classes:
        wrong = label.min() if label.min() < 0 else label.max()
        raise damaged(builder, f"split {split} has label {wrong}, not in 0..{num_classes - 1}")
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    return Arrays(image, label)
