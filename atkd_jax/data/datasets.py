"""Data sets as values: options, with facts, a check of the files, and a way to load them.

    dataset = create("svhn", extra=True)  # the same as Svhn(extra=True)
    dataset.info().num_train, dataset.check(), dataset.load().train.image

digits              scikit-learn's handwritten digits; needs no download and no TensorFlow
cifar10, cifar100   prepared by TFDS, or the official binary archives, which need no TensorFlow
svhn                extra=True adds the 531,131 easier images to the 73,257 of the training set
cinic10             train="train+validation" trains on 180,000 images instead of 90,000
npz:PATH            x_train, y_train, x_test, y_test
folder:PATH         train/CLASS/*.jpg|png, test|val/CLASS/...; in memory, for which all images need
                    one size, or with image_size streamed as crops of it; crop_ratio
imagenet2012        streamed; image_size (224), crop_ratio
tfds:NAME           any classification set of TensorFlow Datasets; in memory if its images have one
                    size and fit, or with image_size streamed; crop_ratio, train, test (split names)

Every data set has the option image_size; 0 means the images' own size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from atkd_jax import ranges
from atkd_jax.data.dataset import Dataset
from atkd_jax.data.local import Digits, Folder, Npz
from atkd_jax.data.records import Share
from atkd_jax.data.stream import Source
from atkd_jax.data.tfds_datasets import Cifar, Cinic10, ImageNet, Svhn, Tfds
from atkd_jax.errors import UserError, check_known
from atkd_jax.ranges import Range

# Name in the configuration -> type. "kind:PATH" is looked up as "kind:". PATH, or the name if there
# is no path, becomes the required field of the type, if it has one.
DATASETS: dict[str, type[Dataset]] = {
    "digits": Digits,
    "cifar10": Cifar,
    "cifar100": Cifar,
    "svhn": Svhn,
    "cinic10": Cinic10,
    "imagenet2012": ImageNet,
    "npz:": Npz,
    "folder:": Folder,
    "tfds:": Tfds,
}


def _options() -> dict[str, Range]:
    found: dict[str, Range] = {}
    for kind in DATASETS.values():
        found = ranges.of(kind) | found
    return found


# Every option of any data set and its range. A data set may restrict an option further.
OPTIONS = _options()


def create(name: str, /, **options: Any) -> Dataset:
    """The data set of a name and options as in the configuration. Opens no file.

    Args:
      name: a key of `DATASETS`; keys that end in a colon are followed by a path or a name, as in
        "npz:PATH".
      options: fields of the type in `DATASETS`. image_size=0 means its default.

    Raises:
      UserError: no such data set or option, or an option is out of its range.
    """
    before, colon, path = name.partition(":")
    check_known("data set", before + colon, DATASETS)
    kind = DATASETS[before + colon]
    size = options.pop("image_size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UserError(f"image_size {size!r} is no whole number of pixels; 0 is the images' own")
    if size:
        options["image_size"] = size
    for option in options:
        check_known(f"option of {name}:", option, ranges.of(kind))
    required = any(field.default is dataclasses.MISSING for field in dataclasses.fields(kind))
    return kind(*[path if colon else name] if required else [], **options)


def load(
    name: str, /, *, data_dir: str | None = None, share: Share | None = None, **options: Any
) -> Source:
    """`create(name, **options).load(data_dir, share)`, in one call."""
    return create(name, **options).load(data_dir, share)
