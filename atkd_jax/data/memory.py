"""Data sets in memory: two uint8 arrays per split, which a loader copies to the device once.

The order of the examples is a function of (seed, epoch) and nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from atkd_jax.data.info import measure_info
from atkd_jax.errors import UserError
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
    """A data set held in memory as a whole. An example's index is its row in `train`."""

    info: DataInfo
    train: Arrays
    test: Arrays


def from_arrays(
    name: str, train: Arrays, test: Arrays, class_names: tuple[str, ...]
) -> MemorySource:
    """A source whose mean and standard deviation are those of its own training images."""
    info = measure_info(name, train.image, train.label, len(test.label), class_names)
    return MemorySource(info, train, test)


def epoch_order(seed: int, epoch: int, num: int, batch_size: int) -> np.ndarray:
    """Rows of the training set in the order of one epoch: [num // batch_size, batch_size] int32.

    A permutation whose last, partial batch is dropped (a different one in every epoch). Drawn from
    `np.random.RandomState`, whose stream is frozen: the same on every NumPy version and machine.

    Raises:
      UserError: the batch is larger than the data set.
    """
    if not 1 <= batch_size <= num:
        raise UserError(f"batch_size {batch_size} is not in 1..{num}, the number of examples")
    steps = num // batch_size
    order = np.random.RandomState([seed, epoch]).permutation(num)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def eval_order(num: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row once: index [steps, batch_size] int32 and a bool mask of the same shape.

    The last batch is padded with row 0, where the mask is false.
    """
    steps = -(-num // batch_size)
    index = np.zeros(steps * batch_size, np.int32)
    index[:num] = np.arange(num)
    mask = np.arange(len(index)) < num
    return index.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def one_of_each(label: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` examples from as many classes as possible, for pictures.

    The first example of every class in the order of the classes, then the second of each, ...
    """
    order = np.argsort(label, kind="stable")
    of_class = label[order]
    place = np.arange(len(label)) - np.searchsorted(of_class, of_class)  # within its class
    return order[np.lexsort((of_class, place))][:count]
