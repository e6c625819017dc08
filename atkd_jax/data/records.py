"""Encoded examples in the order of an epoch: files of a folder, or a prepared TFDS data set."""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from atkd_jax.data.folder import Files
from atkd_jax.data.memory import epoch_order, one_of_each
from atkd_jax.data.tf import import_tf
from atkd_jax.data.tfds import damaged
from atkd_jax.errors import UserError, printable

if TYPE_CHECKING:
    from tensorflow import Tensor
    from tensorflow.data import Dataset
    from tensorflow_datasets.core import DatasetBuilder

Example = dict[str, "Tensor"]  # data: the bytes of an image file; label, index, name
SHUFFLE_BUFFER = 8192  # encoded examples: about 1 GB of ImageNet


@dataclasses.dataclass(frozen=True)
class Share:
    """One host's share of the reading.

    Attributes:
      batch_size: examples per step on this host.
      seed: of the run; the order of an epoch is a function of (seed, epoch).
      host_index, host_count: `jax.process_index()` and `jax.process_count()`.
    """

    batch_size: int
    seed: int = 0
    host_index: int = 0
    host_count: int = 1

    def bounds(self, num: int) -> tuple[int, int]:
        """This host's part of `num` examples: its first, and the first of the next host."""
        first, last = (num * i // self.host_count for i in (self.host_index, self.host_index + 1))
        return first, last


class Records(Protocol):
    """Encoded examples, as `tf.data.Dataset`s of `Example`.

    No image is decoded. Skipping examples costs reading at most.
    """

    def train(self, share: Share, epoch: int, start: int) -> Dataset:
        """This host's training examples of an epoch, without its first `start`."""
        ...

    def test(self, share: Share) -> Dataset:
        """This host's share of the test examples, in order."""
        ...

    def sample(self, share: Share, count: int) -> tuple[Dataset, int]:
        """Up to `count` test examples from as many classes as possible, and their number."""
        ...

    def unreadable(self, split: str, reason: str) -> UserError:
        """The error for files that cannot be read although they were found at the start."""
        ...


def seed_of(*numbers: int) -> int:
    """One seed derived from several numbers."""
    return int(np.random.RandomState(numbers).randint(2**31 - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class FolderRecords:
    """Files of a folder that every host can read.

    The order is that of `memory.epoch_order` for the global batch, so the examples of a step do not
    depend on the number of hosts.
    """

    train_files: Files
    test_files: Files

    def train(self, share: Share, epoch: int, start: int) -> Dataset:
        """The training examples of an epoch, without the first `start` of this host."""
        order = epoch_order(
            share.seed, epoch, len(self.train_files.label), share.batch_size * share.host_count
        )
        own = np.split(order, share.host_count, axis=1)[share.host_index].ravel()
        return self._dataset(self.train_files, own[start:])

    def test(self, share: Share) -> Dataset:
        """This host's share of the test examples, in order."""
        return self._dataset(
            self.test_files, np.arange(*share.bounds(len(self.test_files.label)), dtype=np.int32)
        )

    def sample(self, share: Share, count: int) -> tuple[Dataset, int]:
        """Up to `count` test examples from as many classes as possible, and their number."""
        del share  # every host reads all files
        index = one_of_each(self.test_files.label, count)
        return self._dataset(self.test_files, index), len(index)

    @staticmethod
    def _dataset(files: Files, index: np.ndarray) -> Dataset:
        tf, _ = import_tf()
        # File names are bytes, not necessarily text.
        path = np.array([os.fsencode(path) for path in files.path[index]], object)
        columns = (path, files.label[index], index)

        def read(path: Tensor, label: Tensor, index: Tensor) -> Example:
            return {"data": tf.io.read_file(path), "label": label, "index": index, "name": path}

        data = tf.data.Dataset.from_tensor_slices(columns)
        return data.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def unreadable(self, split: str, reason: str) -> UserError:
        """The error for files that were readable when they were listed."""
        files = self.train_files if split == "train" else self.test_files
        for path in files.path:
            try:
                with open(path, "rb") as file:
                    file.read(1)
            except OSError as error:
                reason = f"{printable(path)}: {error.strerror}"
                break
        return UserError(f"an image of the {split} set cannot be read any more: {reason}")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """A prepared TFDS data set.

    Every host reads a contiguous part of the examples. Files are shuffled, sixteen are interleaved,
    and a buffer of SHUFFLE_BUFFER examples is shuffled on top; an example's index is its number in
    the order of the files.

    Attributes:
      builder: of TFDS, prepared.
      train_split, test_split: names of splits.
      image_key, label_key: names of features.
    """

    builder: DatasetBuilder
    train_split: str
    test_split: str
    image_key: str
    label_key: str

    def train(self, share: Share, epoch: int, start: int) -> Dataset:
        """The training examples of an epoch, without the first `start` of this host."""
        seed = seed_of(share.seed, epoch, share.host_index)
        data = self._dataset(self.train_split, share, seed)
        return data.shuffle(SHUFFLE_BUFFER, seed=seed, reshuffle_each_iteration=False).skip(start)

    def test(self, share: Share) -> Dataset:
        """This host's share of the test examples, in order."""
        return self._dataset(self.test_split, share, None)

    def sample(self, share: Share, count: int) -> tuple[Dataset, int]:
        """Up to `count` examples of this host's share from as many classes as possible."""
        tf, _ = import_tf()
        classes = self.builder.info.features[self.label_key].num_classes
        kept: list[dict] = []
        met: collections.Counter[int] = collections.Counter()
        for example in self.test(share).as_numpy_iterator():
            met[example["label"]] += 1
            if met[example["label"]] <= count:
                kept.append(example)
            if len(met) >= min(count, classes) and len(kept) >= count:
                break
        index = one_of_each(np.array([example["label"] for example in kept]), count)
        columns = {key: np.array([kept[i][key] for i in index]) for key in ("label", "index")}
        for key in ("data", "name"):  # as objects: NumPy's strings lose zeros at their end
            columns[key] = np.array([kept[i][key] for i in index], object)
        return tf.data.Dataset.from_tensor_slices(columns), len(index)

    def _dataset(self, split: str, share: Share, shuffle_seed: int | None) -> Dataset:
        tf, tfds = import_tf()
        info = self.builder.info.splits[split]
        first, last = share.bounds(info.num_examples)
        data = self.builder.as_dataset(
            split=f"{split}[{first}:{last}]",
            shuffle_files=shuffle_seed is not None,
            decoders=tfds.decode.PartialDecoding(
                {self.image_key: True, self.label_key: True},
                decoders={self.image_key: tfds.decode.SkipDecoding()},
            ),
            read_config=tfds.ReadConfig(
                shuffle_seed=shuffle_seed,
                interleave_cycle_length=16 if shuffle_seed is not None else 1,
                add_tfds_id=True,
                try_autocache=False,
                skip_prefetch=True,
                enable_ordering_guard=False,
            ),
        )
        offset = np.cumsum([0, *info.shard_lengths])[:-1]
        first_of_file = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                sorted(info.filenames), tf.constant(offset, tf.int64)
            ),
            default_value=-1,
        )

        def describe(example: Example) -> Example:
            # TFDS names an example FILE__NUMBER.
            name = example["tfds_id"]
            file = tf.strings.regex_replace(name, r"__\d+$", "")
            number = tf.strings.to_number(tf.strings.regex_replace(name, r"^.*__", ""), tf.int64)
            return {
                "data": example[self.image_key],
                "label": tf.cast(example[self.label_key], tf.int32),
                "index": tf.cast(first_of_file.lookup(file) + number, tf.int32),
                "name": name,
            }

        return data.map(describe, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def unreadable(self, split: str, reason: str) -> UserError:
        """The error for files that are damaged."""
        return damaged(self.builder, f"split {split}, {reason}")
