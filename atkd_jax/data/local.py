"""Data sets that are read from files as they are: digits, an archive of arrays, a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from atkd_jax.data import digits, folder, npz
from atkd_jax.data.dataset import CROP, CROP_RATIO, Dataset, needed, photographs
from atkd_jax.data.memory import MemorySource
from atkd_jax.data.records import FolderRecords, Share
from atkd_jax.data.stream import Source, StreamSource
from atkd_jax.errors import printable
from atkd_jax.ranges import setting
from atkd_jax.types import DataInfo


@dataclasses.dataclass(frozen=True)
class Digits(Dataset):
    """1,797 handwritten digits of 16x16, a part of scikit-learn."""

    def info(self, data_dir: str | None = None) -> DataInfo:
        return self.load().info

    def check(self, data_dir: str | None = None) -> str:
        self.info()
        return "digits, part of scikit-learn"

    def present(self, data_dir: str | None = None) -> bool:
        return True

    def load(self, data_dir: str | None = None, share: Share | None = None) -> MemorySource:
        return self._sized(digits.read())


@dataclasses.dataclass(frozen=True)
class Npz(Dataset):
    """A NumPy archive with x_train, y_train, x_test and y_test."""

    path: str

    def info(self, data_dir: str | None = None) -> DataInfo:
        return self.load().info

    def check(self, data_dir: str | None = None) -> str:
        headers = npz.check(self.path)
        self._check_size(f"npz:{self.path}", headers["x_train"].shape[1:])
        counts = (headers[array].shape[0] for array in ("y_train", "y_test"))
        return "{}, {:,} training and {:,} test images".format(self.path, *counts)

    def present(self, data_dir: str | None = None) -> bool:
        return Path(self.path).is_file()

    def load(self, data_dir: str | None = None, share: Share | None = None) -> MemorySource:
        return self._sized(npz.read(self.path))


@dataclasses.dataclass(frozen=True)
class Folder(Dataset):
    """A folder of images with a folder per split and class; streamed if `image_size` is given.

    Attributes:
      crop_ratio: of a stream: evaluation keeps the centre `crop_ratio` of the resized shorter side.
    """

    path: str
    _: dataclasses.KW_ONLY
    crop_ratio: float = setting(CROP, CROP_RATIO)

    @property
    def in_memory(self) -> bool:
        return not self.image_size

    def info(self, data_dir: str | None = None) -> DataInfo:
        return self.load().info if self.in_memory else self._streamed(folder.find(self.path))

    def check(self, data_dir: str | None = None) -> str:
        found = folder.find(self.path)
        if self.in_memory:
            folder.common_size(found)
        return (
            f"{printable(self.path)}, {len(found.train.label):,} training and"
            f" {len(found.test.label):,} test images of {len(found.class_names)} classes"
        )

    def present(self, data_dir: str | None = None) -> bool:
        return Path(self.path).is_dir()

    def load(self, data_dir: str | None = None, share: Share | None = None) -> Source:
        found = folder.find(self.path)
        if self.in_memory:
            return folder.read(found, folder.common_size(found))
        records = FolderRecords(found.train, found.test)
        return StreamSource(self._streamed(found), records, needed(share), self.crop_ratio)

    def _streamed(self, found: folder.Listing) -> DataInfo:
        counts = len(found.train.label), len(found.test.label)
        name = f"folder:{printable(self.path)}"
        info = photographs(name, self.image_size, found.class_names, *counts)
        return dataclasses.replace(info, train_label=found.train.label)
