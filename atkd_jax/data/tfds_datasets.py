"""Data sets that TensorFlow Datasets prepares; CIFAR is read from its official archives as well."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from atkd_jax.data import cifar_binary, folder, tfds
from atkd_jax.data.dataset import CROP, CROP_RATIO, PIXELS, Dataset, needed, photographs
from atkd_jax.data.info import CINIC10_VALIDATION, IMAGENET_BYTES, IMAGENET_SIZES, KNOWN, SVHN_EXTRA
from atkd_jax.data.memory import MemorySource, from_arrays
from atkd_jax.data.records import Share, TfdsRecords
from atkd_jax.data.stream import Source, StreamSource
from atkd_jax.errors import UserError, check_known
from atkd_jax.ranges import FLAG, NAME, setting
from atkd_jax.types import DataInfo

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

IMAGENET = "imagenet2012"  # in the configuration and in TFDS


class TfdsDataset(Dataset):
    """A data set that TensorFlow Datasets prepares.

    Attributes:
      name: in the configuration.
      tfds_name: in TensorFlow Datasets.
    """

    name: str

    @property
    def tfds_name(self) -> str:
        return self.name

    def check(self, data_dir: str | None = None) -> str:
        builder = tfds.on_disk(self.tfds_name, data_dir)
        counts = self._check_counts(builder)
        where = f"{self._info_name} in {builder.data_path}"
        return f"{where}, {counts[0]:,} training and {counts[1]:,} test images"

    def present(self, data_dir: str | None = None) -> bool:
        path = cifar_binary.folder_of(data_dir) / self.tfds_name
        return any(path.rglob("dataset_info.json"))

    def prepare(self, data_dir: str | None = None, manual_dir: str | None = None) -> str:
        """Downloads and prepares the data set, unless that is done.

        Args:
          manual_dir: folder with the archives under their upstream names; None: download them.

        Returns:
          A line that describes the prepared files.

        Raises:
          UserError: it failed; the message names the remedy.
        """
        builder = tfds.find_builder(self.tfds_name, data_dir)
        if not builder.data_path.exists():
            tfds.download(builder, manual_dir)
        splits = sorted(builder.info.splits.items())
        sizes = ", ".join(f"{name} {split.num_examples:,}" for name, split in splits)
        return f"{builder.data_path} is prepared: {sizes}"

    @property
    def _info_name(self) -> str:
        return self.name

    @abc.abstractmethod
    def _splits(self, builder: DatasetBuilder) -> tuple[str, str]:
        """The splits for training and for testing, in TFDS's notation."""

    def _expected(self) -> tuple[int, int] | None:
        """The published numbers of training and test images; None where there are none."""
        return None

    def _check_counts(self, builder: DatasetBuilder) -> tuple[int, int]:
        train, test = self._splits(builder)
        counts = tfds.check_split(builder, train), tfds.check_split(builder, test)
        if (expected := self._expected()) not in (None, counts):
            raise tfds.damaged(builder, f"it holds {counts} examples instead of {expected}")
        return counts


class SmallImages(TfdsDataset):
    """32x32 images in memory, whose facts are published."""

    @property
    def more(self) -> int:
        """The number of training images that an option adds."""
        return 0

    @property
    def train_split(self) -> str:
        """The training split, in TFDS's notation."""
        return "train"

    def info(self, data_dir: str | None = None) -> DataInfo:
        info = KNOWN[self.name]
        self._check_size(self.name, info.image_shape)
        return dataclasses.replace(info, num_train=info.num_train + self.more)

    def check(self, data_dir: str | None = None) -> str:
        self.info()
        return super().check(data_dir)

    def load(self, data_dir: str | None = None, share: Share | None = None) -> MemorySource:
        info = self.info()
        builder = tfds.prepared(self.tfds_name, data_dir)
        train = tfds.read_split(builder, self.train_split, info.num_train, info.num_classes)
        test = tfds.read_split(builder, "test", info.num_test, info.num_classes)
        return MemorySource(dataclasses.replace(info, train_label=train.label), train, test)

    def _splits(self, builder: DatasetBuilder) -> tuple[str, str]:
        return self.train_split, "test"

    def _expected(self) -> tuple[int, int]:
        info = self.info()
        return info.num_train, info.num_test


@dataclasses.dataclass(frozen=True)
class Cifar(SmallImages):
    """CIFAR-10 or CIFAR-100, from the official binary archives or from TFDS.

    Attributes:
      name: "cifar10" or "cifar100".
    """

    name: str

    def __post_init__(self) -> None:
        check_known("data set", self.name, cifar_binary.LAYOUTS)
        super().__post_init__()

    def binary_files(self, data_dir: str | None = None) -> Path | None:
        """The official binary files that `load` reads; None if it reads what TFDS prepared.

        A set that TFDS has prepared takes precedence if TensorFlow is there to read it.
        """
        path = cifar_binary.find(self.name, data_dir)
        return None if path and tfds.is_prepared(self.name, data_dir) else path

    def check(self, data_dir: str | None = None) -> str:
        path = self.binary_files(data_dir)
        if path is None:
            return super().check(data_dir)
        self.info()
        cifar_binary.check(self.name, path)
        return f"{self.name} in {path}, every file in its right size"

    def present(self, data_dir: str | None = None) -> bool:
        return bool(cifar_binary.find(self.name, data_dir)) or super().present(data_dir)

    def prepare(self, data_dir: str | None = None, manual_dir: str | None = None) -> str:
        path = None if manual_dir else self.binary_files(data_dir)
        if path is None:
            return super().prepare(data_dir, manual_dir)
        train, test = cifar_binary.read(self.name, path)
        sizes = f"test {len(test.label):,}, train {len(train.label):,}"
        return f"{path} is whole and needs no preparation: {sizes}"

    def load(self, data_dir: str | None = None, share: Share | None = None) -> MemorySource:
        path = self.binary_files(data_dir)
        if path is None:
            return super().load(data_dir)
        info = self.info()
        train, test = cifar_binary.read(self.name, path)
        return MemorySource(dataclasses.replace(info, train_label=train.label), train, test)


@dataclasses.dataclass(frozen=True)
class Svhn(SmallImages):
    """Street View House Numbers, cropped.

    Attributes:
      extra: adds the easier images to the training set.
    """

    name = "svhn"
    tfds_name = "svhn_cropped"
    extra: bool = setting(False, FLAG)

    @property
    def more(self) -> int:
        return SVHN_EXTRA if self.extra else 0

    @property
    def train_split(self) -> str:
        return "train+extra" if self.extra else "train"


@dataclasses.dataclass(frozen=True)
class Cinic10(SmallImages):
    """CINIC-10.

    Attributes:
      train: "train", or "train+validation" to train on both.
    """

    name = "cinic10"
    train: str = setting("train", NAME)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known("training set of cinic10", self.train, ("train", "train+validation"))

    @property
    def more(self) -> int:
        return 0 if self.train == "train" else CINIC10_VALIDATION

    @property
    def train_split(self) -> str:
        return self.train


@dataclasses.dataclass(frozen=True)
class Tfds(TfdsDataset):
    """Any classification set of TensorFlow Datasets; streamed if `image_size` is given.

    Attributes:
      name: in TensorFlow Datasets.
      crop_ratio: of a stream: evaluation keeps the centre `crop_ratio` of the resized shorter side.
      train, test: splits; test=None means "test", or "validation" if there is no test split.
    """

    name: str
    _: dataclasses.KW_ONLY
    crop_ratio: float = setting(CROP, CROP_RATIO)
    train: str = setting("train", NAME)
    test: str | None = setting(None, NAME)

    @property
    def in_memory(self) -> bool:
        return not self.image_size

    def info(self, data_dir: str | None = None) -> DataInfo:
        builder = tfds.on_disk(self.tfds_name, data_dir)
        return self._read(builder).info if self.in_memory else self._streamed(builder)

    def load(self, data_dir: str | None = None, share: Share | None = None) -> Source:
        builder = tfds.prepared(self.tfds_name, data_dir)
        if self.in_memory:
            return self._read(builder)
        found = self._metadata(builder)
        keys = found.image_key, found.label_key
        records = TfdsRecords(builder, *self._splits(builder), *keys)
        return StreamSource(self._streamed(builder), records, needed(share), self.crop_ratio)

    @property
    def _info_name(self) -> str:
        return self.name if self.name == IMAGENET else f"tfds:{self.name}"

    def _splits(self, builder: DatasetBuilder) -> tuple[str, str]:
        if self.name == IMAGENET:
            return self.train, "validation"  # its test split has no labels
        default = "test" if "test" in builder.info.splits else "validation"
        return self.train, self.test or default

    def _metadata(self, builder: DatasetBuilder) -> tfds.Facts:
        return tfds.facts(builder, *self._splits(builder))

    def _read(self, builder: DatasetBuilder) -> MemorySource:
        found = self._metadata(builder)
        shape = found.image_shape
        pixels = (found.num_train + found.num_test) * (shape[0] or 0) * (shape[1] or 0) * 3
        if not 0 < pixels <= folder.MEMORY_LIMIT:
            why = "do not fit in memory together" if pixels else "differ in size"
            raise UserError(f"the images of {self._info_name} {why}{folder.STREAM_INSTEAD}")
        train, test = self._splits(builder)
        keys = found.image_key, found.label_key
        num_classes = len(found.class_names)
        return from_arrays(
            self._info_name,
            tfds.read_split(builder, train, found.num_train, num_classes, *keys),
            tfds.read_split(builder, test, found.num_test, num_classes, *keys),
            found.class_names,
        )

    def _streamed(self, builder: DatasetBuilder) -> DataInfo:
        class_names = self._metadata(builder).class_names
        counts = self._check_counts(builder)
        return photographs(self._info_name, self.image_size, class_names, *counts)


@dataclasses.dataclass(frozen=True)
class ImageNet(TfdsDataset):
    """ImageNet of ILSVRC 2012, streamed. The validation split is the test set.

    Attributes:
      crop_ratio: evaluation keeps the centre `crop_ratio` of the resized shorter side.
    """

    name = IMAGENET
    _: dataclasses.KW_ONLY
    image_size: int = setting(224, PIXELS)
    crop_ratio: float = setting(CROP, CROP_RATIO)

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def file_bytes(self) -> int:
        return IMAGENET_BYTES

    def info(self, data_dir: str | None = None) -> DataInfo:
        """The facts. `class_names` are numbers here; `load` reads the names from TFDS."""
        names = tuple(map(str, range(1000)))
        return photographs(self.name, self.image_size, names, *IMAGENET_SIZES)

    def load(self, data_dir: str | None = None, share: Share | None = None) -> Source:
        self._check_counts(tfds.prepared(self.name, data_dir))
        opened = Tfds(self.name, image_size=self.image_size, crop_ratio=self.crop_ratio)
        return opened.load(data_dir, share)

    def _splits(self, builder: DatasetBuilder) -> tuple[str, str]:
        return "train", "validation"

    def _expected(self) -> tuple[int, int]:
        return IMAGENET_SIZES
