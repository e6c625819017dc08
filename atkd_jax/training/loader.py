"""Epochs of batches on the devices, with one interface for data in memory and for streams.

Data in memory are copied to every device once, as uint8; per epoch only the order is transferred. A
stream is transferred as it is read, several batches in a stack.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.data import Source, StreamSource
from atkd_jax.data.memory import MemorySource, epoch_order, eval_order, one_of_each
from atkd_jax.data.prefetch import prefetch
from atkd_jax.errors import UserError
from atkd_jax.runtime.devices import Parallel
from atkd_jax.types import Batch, DataInfo, PyTree

Steps = tuple[PyTree, int, int]  # a stack of items, the first to train on, and the end


class Loader(Protocol):
    """Transfers a data set to the devices.

    Attributes:
      source: the data set as it was read.
      info: its facts.
      steps_per_epoch: whole batches of the training set.
      in_memory: whether the images stay on the devices.
      train_data, test_data: arrays on every device, from which `fetch` takes a batch; () for a
        stream.
    """

    info: DataInfo
    steps_per_epoch: int
    in_memory: bool

    @property
    def source(self) -> Source: ...

    @property
    def train_data(self) -> PyTree: ...

    @property
    def test_data(self) -> PyTree: ...

    @staticmethod
    def fetch(data: PyTree, item: PyTree) -> Batch:
        """One batch from `train_data` or `test_data` and an item of a stack; runs on the device."""
        ...

    def train(self, epoch: int, first: int, per_call: int) -> Iterator[Steps]:
        """The rest of an epoch from its step `first` on, at most `per_call` steps at a time."""
        ...

    def test(self, batch_size: int) -> Iterator[PyTree]:
        """Every test example once, in stacks; padded and masked."""
        ...

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images [count, H, W, 3] of as many classes as possible, and their labels."""
        ...


def make_loader(source: Source, parallel: Parallel, batch_size: int, seed: int) -> Loader:
    """The loader for what `data.load` returned."""
    if isinstance(source, MemorySource):
        return MemoryLoader(source, parallel, batch_size, seed)
    return StreamLoader(source, parallel, batch_size)


class MemoryLoader:
    """Items are rows of indices; `fetch` looks the images up on the device.

    Images are copied to the devices on first use, so that they take no memory there while the
    teacher is trained.
    """

    in_memory = True

    def __init__(self, source: MemorySource, parallel: Parallel, batch_size: int, seed: int):
        self.info = source.info
        if batch_size > len(source.train.label):
            raise UserError(
                f"batch_size {batch_size} is larger than the training set of {self.info.name}"
                f" ({len(source.train.label)} examples); choose a smaller one"
            )
        self.parallel, self.batch_size, self.seed = parallel, batch_size, seed
        self.steps_per_epoch = len(source.train.label) // batch_size
        self.source = source

    @functools.cached_property
    def train_data(self) -> PyTree:
        """Images and labels on every device."""
        return self.parallel.replicate((self.source.train.image, self.source.train.label))

    @functools.cached_property
    def test_data(self) -> PyTree:
        """Images and labels on every device."""
        return self.parallel.replicate((self.source.test.image, self.source.test.label))

    @staticmethod
    def fetch(data: PyTree, item: PyTree) -> Batch:
        """Looks up one batch. data: (images, labels); item: (index [B], mask [B] or None)."""
        (images, labels), (index, mask) = data, item
        return Batch(jnp.take(images, index, axis=0), jnp.take(labels, index), index, mask)

    def train(self, epoch: int, first: int, per_call: int) -> Iterator[Steps]:
        """The rest of an epoch from its step `first` on."""
        order = epoch_order(self.seed, epoch, self.info.num_train, self.batch_size)
        stack = (self.parallel.shard_batches(order), None)
        for start in range(first, len(order), per_call):
            yield stack, start, min(start + per_call, len(order))

    def test(self, batch_size: int) -> Iterator[PyTree]:
        """Every test example once, in stacks; padded and masked."""
        yield self.parallel.shard_batches(eval_order(self.info.num_test, batch_size))

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images [count, H, W, 3] of as many classes as possible, and their labels."""
        rows = one_of_each(self.source.test.label, count)
        return self.source.test.image[rows], self.source.test.label[rows]


class StreamLoader:
    """Items are batches, decoded on the host; `fetch` returns them as they are."""

    in_memory = False

    def __init__(self, source: StreamSource, parallel: Parallel, batch_size: int):
        self.info, self.source, self.parallel = source.info, source, parallel
        self.batch_size = batch_size
        self.steps_per_epoch = self.info.num_train // batch_size
        self.train_data = self.test_data = ()

    @staticmethod
    def fetch(data: PyTree, item: Batch) -> Batch:
        del data
        return item

    def _stacks(self, batches: Iterator[Batch], per_stack: int) -> Iterator[PyTree]:
        """Stacks on the devices; transfers of the next ones have started."""

        def stacks():
            while group := list(itertools.islice(batches, per_stack)):
                yield jax.tree.map(lambda *x: np.stack(x), *group)

        return prefetch(stacks(), self.parallel.shard_local_batches)

    def train(self, epoch: int, first: int, per_call: int) -> Iterator[Steps]:
        """The rest of an epoch from its step `first` on."""
        for stack in self._stacks(self.source.train(epoch, first), per_call):
            yield stack, 0, len(stack.label)

    def test(self, batch_size: int) -> Iterator[PyTree]:
        """Every test example once, in stacks; padded and masked."""
        yield from self._stacks(self.source.test(), 1)

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images [count, H, W, 3] of as many classes as possible, and their labels."""
        return self.source.sample(count)
