"""Sets that fit in memory: two uint8 arrays per split, made to live on the device.

The order in which examples are seen is a function of (seed, epoch) and nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from atkd_jax.data import dataset_info
from atkd_jax.types import DataInfo


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """One split.

    Attributes:
      image: [N, H, W, 3] uint8.
      label: [N] int32.
    """

    image: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySource:
    """A data set held in memory whole. An example's index is its row in `train`."""

    info: DataInfo
    train: Arrays
    test: Arrays


def epoch_order(seed: int, epoch: int, num: int, batch_size: int) -> np.ndarray:
    """Rows of the training set in the order of one epoch: [num // batch_size, batch_size] int32.

    A permutation whose last, partial batch is dropped (another one in every epoch). Drawn from
    `np.random.RandomState`, whose stream is frozen: the same on every NumPy version and machine.

    Raises:
      ValueError: the batch is larger than the data set.
    """
    if not 1 <= batch_size <= num:
        raise ValueError(f"batch_size {batch_size} is not in 1..{num}, the number of examples")
    steps = num // batch_size
    order = np.random.RandomState([seed, epoch]).permutation(num)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def eval_order(num: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row once: index [steps, batch_size] int32 and mask of the same shape.

    The last batch is filled up with row 0, where the mask is false.
    """
    steps = -(-num // batch_size)
    index = np.zeros(steps * batch_size, np.int32)
    index[:num] = np.arange(num)
    mask = np.arange(len(index)) < num
    return index.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def one_of_each(label: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` examples of as many classes as possible, to look at.

    The first example of every class in the order of the classes, then the second of each, ...
    """
    order = np.argsort(label, kind="stable")
    of_class = label[order]
    place = np.arange(len(label)) - np.searchsorted(of_class, of_class)  # within its class
    return order[np.lexsort((of_class, place))][:count]


def digits() -> MemorySource:
    """1,797 real handwritten digits, 8x8 in 17 grey levels, that come with scikit-learn.

    Every pixel is doubled in both directions (16x16) so that a network of three resolutions still
    sees 4x4 in its last stage; grey is repeated in three channels, 0..16 becomes 0..255. 36 images
    of every class, always the same ones, are the test set: 1,437 to train on and 360 to test.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    image = np.repeat(grey.repeat(2, axis=1).repeat(2, axis=2)[..., None], 3, axis=-1)
    label = data.target.astype(np.int32)
    draw = np.random.RandomState(0)
    test = np.sort(
        np.concatenate([draw.permutation(np.flatnonzero(label == k))[:36] for k in range(10)])
    )
    train = np.setdiff1d(np.arange(len(label)), test)
    return in_memory(
        "digits",
        Arrays(image[train], label[train]),
        Arrays(image[test], label[test]),
        dataset_info.DIGITS,
    )


def in_memory(name: str, train: Arrays, test: Arrays, class_names: tuple[str, ...]) -> MemorySource:
    """A source whose facts are measured on its own training images."""
    info = dataset_info.describe(name, train.image, train.label, len(test.label), class_names)
    return MemorySource(info, train, test)
