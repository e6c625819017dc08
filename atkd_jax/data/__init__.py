"""Data sets by name. `load` gives a source: facts, and arrays for the device or a stream.

digits        scikit-learn's handwritten digits; needs no download and no TensorFlow
cifar10, cifar100   prepared by TFDS, or the official binary archives, which need no TensorFlow
svhn          extra=True adds the 531,131 easier images to the 73,257 of the training set
cinic10       train="train+validation" trains on 180,000 images instead of 90,000
npz:PATH      x_train, y_train, x_test, y_test
folder:PATH   train/CLASS/*.jpg|png, test|val/CLASS/...; in memory, for which all images need one
              size, or with image_size streamed as crops of it; crop_ratio
imagenet2012  streamed; image_size (224), crop_ratio
tfds:NAME     any classification set of TensorFlow Datasets; in memory if its images have one
              size and fit, or with image_size streamed; crop_ratio, train, test (split names)

image_size may be given for every set; 0 means the images' own, which is what the others have.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable
from pathlib import Path

from atkd_jax.data import cifar_binary, dataset_info, folder, memory, npz, prepared
from atkd_jax.data.memory import Arrays, MemorySource, epoch_order, eval_order
from atkd_jax.data.records import FolderRecords, Share, TfdsRecords
from atkd_jax.data.stream import StreamSource
from atkd_jax.errors import check_known, printable
from atkd_jax.types import DataInfo

__all__ = [
    "DATASETS", "Arrays", "Share", "MemorySource", "StreamSource", "epoch_order", "eval_order",
    "binary_files", "load", "tfds_name",
]  # fmt: skip
Source = MemorySource | StreamSource
# An image that cannot be read is named, even where other libraries are kept quiet.
logging.getLogger(__name__).setLevel(logging.WARNING)


def _digits() -> Source:
    return memory.digits()


def _npz(path: str) -> Source:
    return npz.read(path)


def _cifar10(data_dir: str | None) -> Source:
    return _cifar("cifar10", data_dir)


def _cifar100(data_dir: str | None) -> Source:
    return _cifar("cifar100", data_dir)


def _cifar(name: str, data_dir: str | None) -> Source:
    path = binary_files(name, data_dir)
    if path is None:
        return _known(name, data_dir)
    train, test = cifar_binary.read(name, path)
    return MemorySource(
        dataclasses.replace(dataset_info.KNOWN[name], train_label=train.label), train, test
    )


def _svhn(data_dir: str | None, extra: bool = False) -> Source:
    more = dataset_info.SVHN_EXTRA if extra else 0
    return _known("svhn", data_dir, "train+extra" if extra else "train", more)


def _cinic10(data_dir: str | None, train: str = "train") -> Source:
    more = {"train": 0, "train+validation": dataset_info.CINIC10_VALIDATION}
    check_known("training set of cinic10", train, more)
    return _known("cinic10", data_dir, train, more[train])


def _known(name: str, data_dir: str | None, train: str = "train", more: int = 0) -> Source:
    """A set whose facts stand in `info`, with `more` training images than written there."""
    info = dataclasses.replace(
        dataset_info.KNOWN[name], num_train=dataset_info.KNOWN[name].num_train + more
    )
    builder = prepared.prepared(tfds_name(name), data_dir)
    arrays = prepared.read_split(builder, train, info.num_train, info.num_classes)
    test = prepared.read_split(builder, "test", info.num_test, info.num_classes)
    return MemorySource(dataclasses.replace(info, train_label=arrays.label), arrays, test)


def _folder(
    path: str, share: Share | None, image_size: int | None = None, crop_ratio: float = 224 / 256
) -> Source:
    found = folder.find(path)
    if not image_size:
        return folder.read(found, folder.common_size(found))
    info = _streamed(
        f"folder:{printable(path)}", image_size, found.class_names,
        len(found.train.label), len(found.test.label),
    )  # fmt: skip
    info = dataclasses.replace(info, train_label=found.train.label)
    return StreamSource(info, FolderRecords(found.train, found.test), _needed(share), crop_ratio)


def _imagenet2012(
    data_dir: str | None, share: Share | None, image_size: int = 224, crop_ratio: float = 224 / 256
) -> Source:
    source = _tfds("imagenet2012", data_dir, share, image_size, crop_ratio)
    sizes = source.info.num_train, source.info.num_test
    if sizes != dataset_info.IMAGENET_SIZES:
        raise prepared.damaged(
            source.records.builder,
            f"it holds {sizes} examples instead of {dataset_info.IMAGENET_SIZES}",
        )
    return source


def _tfds(
    name: str,
    data_dir: str | None,
    share: Share | None,
    image_size: int | None = None,
    crop_ratio: float = 224 / 256,
    train: str = "train",
    test: str | None = None,
) -> Source:
    builder = prepared.prepared(name, data_dir)
    test = test or ("test" if "test" in builder.info.splits else "validation")
    if name == "imagenet2012":
        test = "validation"  # its test split has no labels
    facts = prepared.facts(builder, train, test)
    shape = facts.image_shape
    pixels = (facts.num_train + facts.num_test) * (shape[0] or 0) * (shape[1] or 0) * 3
    if not image_size and not 0 < pixels <= folder.MEMORY_LIMIT:
        why = "do not fit in memory together" if pixels else "differ in size"
        raise ValueError(f"the images of tfds:{name} {why}{folder.STREAM_INSTEAD}")
    if not image_size:
        keys = facts.image_key, facts.label_key
        num_classes = len(facts.class_names)
        return memory.in_memory(
            f"tfds:{name}",
            prepared.read_split(builder, train, facts.num_train, num_classes, *keys),
            prepared.read_split(builder, test, facts.num_test, num_classes, *keys),
            facts.class_names,
        )
    records = TfdsRecords(builder, train, test, facts.image_key, facts.label_key)
    records.check()
    info = _streamed(
        name if name == "imagenet2012" else f"tfds:{name}",
        image_size, facts.class_names, facts.num_train, facts.num_test,
    )  # fmt: skip
    return StreamSource(info, records, _needed(share), crop_ratio)


def _streamed(
    name: str, size: int, class_names: tuple[str, ...], num_train: int, num_test: int
) -> DataInfo:
    return DataInfo(
        name=name,
        image_shape=(size, size, 3),
        class_names=class_names,
        num_train=num_train,
        num_test=num_test,
        mean=dataset_info.IMAGENET_MEAN,
        std=dataset_info.IMAGENET_STD,
    )


def _needed(share: Share | None) -> Share:
    if share is None:
        raise ValueError("a streamed data set needs share=Share(batch_size, seed, ...)")
    return share


# name -> loader. Of "kind:PATH" the kind is looked up here, and the loader gets PATH first. What
# else a loader takes are its options, besides data_dir and share, which `load` hands to those that
# ask for them.
DATASETS: dict[str, Callable[..., Source]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "cinic10": _cinic10,
    "imagenet2012": _imagenet2012,
    "npz:": _npz,
    "folder:": _folder,
    "tfds:": _tfds,
}


def tfds_name(name: str) -> str:
    """What TensorFlow Datasets calls the data set that we call `name`."""
    return {"svhn": "svhn_cropped"}.get(name, name.removeprefix("tfds:"))


def binary_files(name: str, data_dir: str | None = None) -> Path | None:
    """The official binary files that `load` reads; None: it asks TensorFlow Datasets.

    A set that TFDS has prepared comes first, if TensorFlow is there to read it.
    """
    path = cifar_binary.find(name, data_dir)
    return None if path and prepared.is_prepared(name, data_dir) else path


def load(
    name: str, *, data_dir: str | None = None, share: Share | None = None, **options
) -> Source:
    """Loads a data set.

    Args:
      name: a key of `DATASETS`; keys that end in a colon are followed by a path or a name, as in
        "npz:PATH".
      data_dir: where TFDS keeps prepared data sets, and where the binary archives of CIFAR lie;
        None means $TFDS_DATA_DIR or ~/tensorflow_datasets.
      share: what a streamed set needs to know of the host that reads it; sets in memory do not.
      options: what the data set lets one choose, see the top of this file. Every set takes
        image_size; one whose images have another and stay in memory refuses it.

    Raises:
      ValueError: no such data set or option, or its files are missing or wrong.
    """
    kind, colon, path = name.partition(":")
    key = kind + colon
    check_known("data set", key, DATASETS)
    loader = DATASETS[key]
    given = {"data_dir": data_dir, "share": share}
    takes = list(inspect.signature(loader).parameters)[1 if colon else 0 :]
    size = options.pop("image_size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"image_size {size!r} is no whole number of pixels; 0 is the images' own")
    if size and "image_size" in takes:
        options["image_size"] = size
    for option in options:
        check_known(f"option of {name}:", option, [k for k in takes if k not in given] or ["none"])
    given = {k: v for k, v in given.items() if k in takes}
    source = loader(*([path] if colon else []), **given, **options)
    check_size(source.info, size)
    return source


def check_size(info: DataInfo, image_size: int) -> None:
    """Raises ValueError if images of another size are asked for, and not as they are (0)."""
    height, width, _ = info.image_shape
    if image_size and (height, width) != (image_size, image_size):
        raise ValueError(
            f"the images of {info.name} are {width}x{height} and stay so: leave"
            f" image_size={image_size} out"
        )
