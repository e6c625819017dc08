"""Data sets prepared by TensorFlow Datasets (TFDS): find, download, check and read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from atkd_jax.data import cifar_binary
from atkd_jax.data.memory import Arrays
from atkd_jax.data.tf import import_tf
from atkd_jax.errors import UserError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


def prepare_command(name: str) -> str:
    """The command that prepares the data set that TFDS calls `name`."""
    return f"python -m atkd_jax.data.prepare {'svhn' if name == 'svhn_cropped' else name}"


def find_builder(name: str, data_dir: str | None = None) -> DatasetBuilder:
    """The TFDS builder called `name`, prepared or not.

    Args:
      data_dir: where TFDS keeps its data sets; None means $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: TFDS has no such data set, or is not installed.
    """
    try:
        _, tfds = import_tf()
    except UserError as error:
        if name not in cifar_binary.LAYOUTS:
            raise
        raise UserError(
            f"{name} without TensorFlow: {cifar_binary.advice(name, data_dir)}. Otherwise: {error}"
        ) from None
    if name == "cinic10":
        from atkd_jax.data import cinic10  # noqa: F401  registers it
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(
            f"TensorFlow Datasets knows no data set {name!r}, and none of that name is in"
            f" {data_dir or tfds.core.constants.DATA_DIR}"
        ) from None


def is_prepared(name: str, data_dir: str | None = None) -> bool:
    """Whether the data set is prepared and readable. Imports no TensorFlow without its folder."""
    if not (cifar_binary.folder_of(data_dir) / name).is_dir():
        return False
    try:
        return find_builder(name, data_dir).is_prepared()
    except ValueError:
        return False


def on_disk(name: str, data_dir: str | None = None) -> DatasetBuilder:
    """The TFDS builder of a prepared data set. Downloads nothing.

    Raises:
      UserError: it is not prepared; the message names the remedy.
    """
    builder = find_builder(name, data_dir)
    if not builder.is_prepared():
        raise UserError(
            f"{builder.name} is not prepared in {builder.data_path.parent.parent}; run: "
            + prepare_command(builder.name)
            + _or_binary(builder)
        )
    return builder


def prepared(name: str, data_dir: str | None = None) -> DatasetBuilder:
    """The TFDS builder of a prepared data set. Downloads and prepares it if it is missing.

    Raises:
      UserError: it is missing and cannot be downloaded, or it is incomplete.
    """
    builder = find_builder(name, data_dir)
    if not builder.data_path.exists():
        download(builder)
    elif not builder.is_prepared():
        raise damaged(builder, "its dataset_info.json is missing")
    return builder


def download(builder: DatasetBuilder, manual_dir: str | None = None) -> None:
    """Downloads and prepares, or prepares archives in `manual_dir` under their upstream names.

    Raises:
      UserError: it failed; the message names the remedy.
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


def _check_reachable(builder: DatasetBuilder) -> None:
    """Fails after one request; TFDS itself would retry for minutes."""
    import requests

    for url in list(builder.url_infos or {})[:1]:
        try:
            requests.head(url, timeout=10)
        except requests.RequestException:
            raise _not_downloaded(builder, f"{url.split('/')[2]} cannot be reached") from None


def _not_downloaded(builder: DatasetBuilder, reason: str) -> UserError:
    return UserError(
        f"{builder.name} is not in {builder.data_path.parent.parent} and could not be downloaded"
        f" ({reason}). Where there is a network run: {prepare_command(builder.name)}; or bring the"
        f" archives by hand and add --manual_dir DIR{_or_binary(builder)}"
    )


def _or_binary(builder: DatasetBuilder) -> str:
    """The other way to get CIFAR; empty for other data sets."""
    if builder.name not in cifar_binary.LAYOUTS:
        return ""
    return f"; or {cifar_binary.advice(builder.name, builder.data_path.parent.parent)}"


def damaged(builder: DatasetBuilder, what: str) -> UserError:
    """The error for a prepared data set that cannot be what TFDS wrote."""
    return UserError(
        f"the prepared {builder.name} in {builder.data_path} is damaged: {what}."
        f" Move that folder away and run: {prepare_command(builder.name)}"
    )


class Facts(NamedTuple):
    """Metadata of a TFDS builder; `image_shape` holds None where images differ in size."""

    image_key: str
    label_key: str
    image_shape: tuple[int | None, ...]
    class_names: tuple[str, ...]
    num_train: int
    num_test: int


def facts(builder: DatasetBuilder, train: str, test: str) -> Facts:
    """The metadata needed to read a classification set with these two splits.

    Raises:
      UserError: it is no classification set, or has no such split.
    """
    _, tfds = import_tf()
    info = builder.info
    _check_splits(builder, train, test)
    keys = info.supervised_keys or ("image", "label")
    image, label = (dict(info.features.items()).get(key) for key in keys[:2])
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(f"{builder.name} is no set of images with one class each: {info.features}")
    return Facts(
        keys[0],
        keys[1],
        image.shape,
        tuple(label.names),
        info.splits[train].num_examples,
        info.splits[test].num_examples,
    )


def _check_splits(builder: DatasetBuilder, *splits: str) -> None:
    for split in splits:
        if split not in builder.info.splits:
            raise UserError(
                f"{builder.name} has no split {split!r}, but"
                f" {', '.join(sorted(builder.info.splits))}"
            )


def check_split(builder: DatasetBuilder, split: str) -> int:
    """The number of examples in a split such as "train" or "train+extra". Reads no example.

    Raises:
      UserError: there is no such split, or one of its files is missing.
    """
    names = split.split("+")
    _check_splits(builder, *names)
    infos = [builder.info.splits[name] for name in names]
    there = set(import_tf()[0].io.gfile.listdir(str(builder.data_path)))
    missing = sorted({file for info in infos for file in info.filenames} - there)
    if missing:
        raise damaged(builder, f"{len(missing)} files are missing, first {missing[0]}")
    return sum(info.num_examples for info in infos)


def read_split(
    builder: DatasetBuilder,
    split: str,
    num: int,
    num_classes: int,
    image_key: str = "image",
    label_key: str = "label",
) -> Arrays:
    """One split decoded into memory, in the order of the files; grey images get three channels.

    Args:
      split: in TFDS's notation, e.g. "train" or "train+extra".
      num: the expected number of examples.
      num_classes: labels must be in 0..num_classes - 1.
      image_key, label_key: names of features.

    Raises:
      UserError: files are missing or cut off, or the number of examples or a label is wrong.
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
