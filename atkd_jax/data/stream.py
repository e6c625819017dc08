"""Streamed data sets, which do not fit in memory: tf.data decodes the images on every host.

Images are copied to the device as uint8; flip, colour and normalisation happen there. A training
example's crop is a function of (seed, epoch, index), whichever host reads it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from atkd_jax.data.decode import random_resized_crop, resized_centre
from atkd_jax.data.folder import MAX_CORRUPT
from atkd_jax.data.memory import MemorySource
from atkd_jax.data.records import Example, Records, Share, seed_of
from atkd_jax.data.tf import import_tf
from atkd_jax.errors import UserError, printable
from atkd_jax.types import Batch, DataInfo

if TYPE_CHECKING:
    from tensorflow import Tensor
    from tensorflow.data import Dataset

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # image, label, index, ok
log = logging.getLogger(__name__)


class Corrupt:
    """Printable names of the images that could not be decoded, for each split."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {"train": set(), "test": set()}

    def add(self, split: str, name: str, num: int) -> None:
        """Records an image, and logs it the first time.

        Raises:
          UserError: more than 0.1 % of the split's `num` examples on this host are corrupt.
        """
        names = self.names[split]
        if name not in names:
            names.add(name)
            log.warning("%s cannot be decoded and is skipped (%d so far)", name, len(names))
        if len(names) > MAX_CORRUPT * num:
            raise UserError(
                f"{len(names)} of {num} {split} images cannot be decoded, more than"
                f" {MAX_CORRUPT:.1%}; the first is {min(names)}. Move them elsewhere or"
                " replace them"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class StreamSource:
    """A data set that is read while it is used.

    Attributes:
      info: its facts; `image_shape` is that of a batch's images.
      records: the encoded examples.
      share: this host's share.
      crop_ratio: evaluation keeps the centre `crop_ratio` of the resized image's shorter side.
      corrupt: images that could not be decoded so far.
    """

    info: DataInfo
    records: Records
    share: Share
    crop_ratio: float
    corrupt: Corrupt = dataclasses.field(default_factory=Corrupt)

    def __post_init__(self) -> None:
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"crop_ratio {self.crop_ratio} is not in 0..1")
        first, last = self.share.bounds(self.info.num_train)
        if last - first < self.share.batch_size:
            raise UserError(
                f"host {self.share.host_index} of {self.share.host_count} gets {last - first} of"
                f" {self.info.num_train} training examples, fewer than its batch of"
                f" {self.share.batch_size}; use fewer hosts or a smaller batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a training epoch, the same on all hosts; a last partial batch is dropped."""
        return self.info.num_train // (self.share.batch_size * self.share.host_count)

    @property
    def test_steps(self) -> int:
        """Batches of `test`, the same on all hosts."""
        largest = -(-self.info.num_test // self.share.host_count)
        return -(-largest // self.share.batch_size)

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This host's batches of an epoch from `start_step` on, uint8 [B, S, S, 3].

        Examples before `start_step` are not decoded. An image that cannot be decoded is replaced
        by another of its batch, so that all others keep their places and a resumed run sees the
        same batches.

        Raises:
          UserError: files are damaged, or too many images are.
        """
        tf, _ = import_tf()
        first, last = self.share.bounds(self.info.num_train)
        seed = seed_of(self.share.seed, epoch)

        def decode(example: Example) -> Tensor:
            return random_resized_crop(
                example["data"],
                tf.stack([seed, tf.cast(example["index"], tf.int64)]),
                self.info.image_shape[0],
            )

        def records(start: int) -> Dataset:
            return self.records.train(self.share, epoch, start)

        raw = self._batches("train", records, decode, start_step, last - first)
        for _ in range(start_step, self.steps_per_epoch):
            image, label, index, ok = next(raw)
            source = np.where(ok, np.arange(len(ok)), np.argmax(ok))
            # Of NumPy, until the loader puts them on the devices.
            yield Batch(image[source], label[source], index[source])  # type: ignore[arg-type]

    def test(self) -> Iterator[Batch]:
        """Every example of this host's share once, padded and masked; `test_steps` batches.

        An image that cannot be decoded becomes black, so that every example counts.

        Raises:
          UserError: files are damaged, or too many images are.
        """
        first, last = self.share.bounds(self.info.num_test)
        size = self.share.batch_size

        def records(start: int) -> Dataset:
            return self.records.test(self.share).skip(start)

        raw = self._batches("test", records, self._centre, 0, last - first)
        for step in range(self.test_steps):
            expected = min(max(last - first - step * size, 0), size)
            if expected:
                batch = next(raw)
            else:
                empty = np.zeros(0, np.int32)
                batch = (np.zeros((0, *self.info.image_shape), np.uint8), empty, empty, empty)
            image, label, index, _ = (_pad(column, size) for column in batch)
            mask = np.arange(size) < expected
            yield Batch(image, label, index, mask)  # type: ignore[arg-type]  # of NumPy, as above

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Test images of as many classes as possible, and their labels, see `memory.one_of_each`.

        The labels of a prepared set are only known by reading: there it returns the first images
        of the classes that this host reads first.
        """
        chosen, num = self.records.sample(self.share, count)
        raw = self._batches("test", chosen.skip, self._centre, 0, num)
        batches = itertools.islice(raw, -(-num // self.share.batch_size))
        image, label, *_ = map(np.concatenate, zip(*batches, strict=True))
        return image, label

    def _centre(self, example: Example) -> Tensor:
        return resized_centre(example["data"], self.info.image_shape[0], self.crop_ratio)

    def _batches(
        self,
        split: str,
        records: Callable[[int], Dataset],
        decode: Callable[[Example], Tensor],
        step: int,
        num: int,
    ) -> Iterator[Columns]:
        """Batches from `step` on, the last one partial: image, label, index, ok (was decoded).

        Uses the fast pipeline up to the first image that cannot be decoded, and from its batch on
        the careful one, which costs about a tenth more.

        Args:
          records: number of examples to skip -> dataset of encoded examples.
          decode: example -> image.
          num: the number of examples.
        """
        tf, _ = import_tf()
        first, last = self.share.bounds(getattr(self.info, f"num_{split}"))
        size = self.share.batch_size
        careful = bool(self.corrupt.names[split])
        while True:
            data = _pipeline(records(step * size), decode, self.info.image_shape, careful)
            try:
                for batch in data.batch(size).prefetch(2):
                    columns = {key: value.numpy() for key, value in batch.items()}
                    if len(columns["ok"]) != min(size, num - step * size):
                        break
                    for name in columns["name"][~columns["ok"]]:
                        self.corrupt.add(split, printable(os.fsdecode(name)), last - first)
                    self._check_labels(split, columns["label"])
                    step += 1
                    yield tuple(columns[key] for key in ("image", "label", "index", "ok"))
                break
            except tf.errors.OpError as error:
                if careful or not isinstance(error, tf.errors.InvalidArgumentError):
                    # Without the names of nodes that TensorFlow adds.
                    reason = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*", "", str(error.message))
                    reason = " ".join(reason.split())
                    raise self.records.unreadable(split, reason) from None
                careful = True
        raise self.records.unreadable(split, f"it ended before this host's {num} examples")

    def _check_labels(self, split: str, label: np.ndarray) -> None:
        if label.min() < 0 or label.max() >= self.info.num_classes:
            wrong = label.min() if label.min() < 0 else label.max()
            raise UserError(
                f"the {split} files of {self.info.name} have label {wrong}, not in"
                f" 0..{self.info.num_classes - 1}"
            )


Source = MemorySource | StreamSource  # a data set that was loaded


def _pipeline(
    records: Dataset,
    decode: Callable[[Example], Tensor],
    image_shape: tuple[int, int, int],
    careful: bool,
) -> Dataset:
    """Decodes in parallel and in order; if `careful`, an error gives a black image, not `ok`."""
    tf, _ = import_tf()

    def result(example: Example, image: Tensor, ok: bool) -> Example:
        kept = {key: example[key] for key in ("label", "index", "name")}
        return kept | {"image": tf.ensure_shape(image, image_shape), "ok": ok}

    def good(example: Example) -> Example:
        return result(example, decode(example), True)

    def bad(example: Example) -> Example:
        return result(example, tf.zeros(image_shape, tf.uint8), False)

    def good_or_bad(example: Example) -> Dataset:
        one = tf.data.Dataset.from_tensors(example)
        return one.map(good).ignore_errors().concatenate(one.map(bad)).take(1)

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if careful:
        data = records.interleave(
            good_or_bad, cycle_length=threads, num_parallel_calls=threads, deterministic=True
        )
    else:
        data = records.map(good, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_optimization.map_fusion = True  # read and decode together: 5 % faster
    # A private pool: decoding neither waits for XLA's threads nor starts more than there are cores,
    # and one image is decoded by one thread.
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return data.with_options(options)


def _pad(column: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([column, np.zeros((size - len(column), *column.shape[1:]), column.dtype)])
