"""Training on a part of a data set: equally many images of every class."""

from __future__ import annotations

import dataclasses

import numpy as np

from atkd_jax.data.dataset import Dataset
from atkd_jax.data.memory import Arrays, MemorySource, one_of_each
from atkd_jax.data.records import Share
from atkd_jax.errors import UserError
from atkd_jax.ranges import check_fields, setting, whole
from atkd_jax.types import DataInfo


@dataclasses.dataclass(frozen=True)
class Subset:
    """Which training images to use. The test set is never reduced.

    Attributes:
      images: their number; classes get equally many, or one more or less. 0: all images.
      seed: determines which ones. With one seed, more images include fewer.
    """

    images: int = setting(0, whole(0))
    seed: int = setting(0, whole(0))

    def __post_init__(self) -> None:
        check_fields(self)

    def of(self, dataset: Dataset) -> Dataset:
        """The data set with these training images only.

        Raises:
          UserError: the data set is streamed.
        """
        if not self.images:
            return dataset
        if not dataset.in_memory:
            raise UserError(
                f"data.subset.images={self.images} needs a data set that fits in memory; leave it"
                " out, or point data.name to a folder with fewer images"
            )
        return SubsetOf(dataset, self)


@dataclasses.dataclass(frozen=True)
class SubsetOf(Dataset):
    """A data set in memory with a part of its training images."""

    dataset: Dataset
    subset: Subset

    def info(self, data_dir: str | None = None) -> DataInfo:
        return self._reduced(self.dataset.info(data_dir))

    def check(self, data_dir: str | None = None) -> str:
        found = self.dataset.check(data_dir)
        return f"{found}; trains on {self.info(data_dir).num_train:,} of them"

    def present(self, data_dir: str | None = None) -> bool:
        return self.dataset.present(data_dir)

    def load(self, data_dir: str | None = None, share: Share | None = None) -> MemorySource:
        whole = self.dataset.load(data_dir, share)
        assert isinstance(whole, MemorySource)  # Subset.of refuses others
        info = self._reduced(whole.info)
        rows = choose(whole.train.label, self.subset.images, self.subset.seed)
        train = Arrays(whole.train.image[rows], whole.train.label[rows])
        info = dataclasses.replace(info, train_label=train.label)
        return MemorySource(info, train, whole.test)

    def _reduced(self, info: DataInfo) -> DataInfo:
        if not info.num_classes <= self.subset.images <= info.num_train:
            raise UserError(
                f"data.subset.images={self.subset.images} is not in {info.num_classes}.."
                f"{info.num_train}: {info.name} has {info.num_train} training images of"
                f" {info.num_classes} classes"
            )
        return dataclasses.replace(info, num_train=self.subset.images, train_label=None)


def choose(label: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of `count` random examples, equally many of every class as far as there are any.

    Drawn from `np.random.RandomState`, whose stream is frozen. The order of the rows is kept.
    """
    order = np.random.RandomState(seed).permutation(len(label))
    return np.sort(order[one_of_each(label[order], count)])
