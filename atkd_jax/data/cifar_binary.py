"""CIFAR-10 and CIFAR-100 from the official binary archives, without TensorFlow.

Archives are read packed or unpacked. The examples come in the order in which TensorFlow Datasets
stores them, so that a seed gives the same run with either source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from atkd_jax.data.memory import Arrays
from atkd_jax.errors import UserError

log = logging.getLogger(__name__)
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 3 * 32 * 32  # bytes, channel by channel
Member = tuple[str, int, IO[bytes]]  # name, size, content


@dataclasses.dataclass(frozen=True)
class File:
    """One of the official files.

    Attributes:
      rows: examples in it.
      md5: of its content.
      restored: MD5 of the partly restored copy described at `LAYOUTS`; empty if there is none.
    """

    name: str
    rows: int
    md5: str
    restored: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The archive of a data set.

    Attributes:
      archive, archive_md5: the file to download, and its MD5 on `PAGE`.
      folder: what it unpacks to.
      label_bytes: label bytes before the pixels of each example; the last one is its class.
      train, test: the files of a split, in order.
    """

    archive: str
    archive_md5: str
    folder: str
    label_bytes: int
    train: tuple[File, ...]
    test: tuple[File, ...]

    def size(self, file: File) -> int:
        """The expected size of the file in bytes."""
        return file.rows * (self.label_bytes + PIXELS)


# MD5 of the archives: PAGE. Of the files in them: github rai-project/dldataset, vision/cifar10.go
# and cifar100.go. `restored` are those of a copy of CIFAR-10 of which 59,858 images are the
# official ones, bit for bit, and 142 (110 for training, 32 for testing) were restored from JPEG.
_CIFAR10 = tuple(
    File(name, 10_000, md5, restored)
    for name, md5, restored in (
        line.split()
        for line in """
        data_batch_1.bin 5dd7e06a14cb22eb9f671a540d1b7c25 72a13facff7fc96578078fd319e91b16
        data_batch_2.bin 5ea93a67294ea407fff1d09f752e9692 2c24c6d8853c21306abb94218c5078cf
        data_batch_3.bin 942cd6a4bcdd0dd3c604fbe906cb4421 155702ccca3766a19daf69d1c847f617
        data_batch_4.bin ae636b3ba5c66a11e91e8cb52e771fcb e51ad1eb8685b1c804403d5e8b381f34
        data_batch_5.bin 53f37980c15c3d472c316c40844f3f0d 4988bc966e89de27f212f445d4d25f00
        test_batch.bin   803d5f7f4d78ea53de84dbe85f74fb6d 697a990f30ad5806d7fb7fd46892d34e
        """.strip().splitlines()
    )
)
LAYOUTS = {
    "cifar10": Layout(
        archive="cifar-10-binary.tar.gz",
        archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        label_bytes=1,
        train=_CIFAR10[:-1],
        test=_CIFAR10[-1:],
    ),
    "cifar100": Layout(
        archive="cifar-100-binary.tar.gz",
        archive_md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        label_bytes=2,  # the superclass, then the class
        train=(File("train.bin", 50_000, "6172c7755cfe09b2fe270c85cebc1b15"),),
        test=(File("test.bin", 10_000, "4499cfba6c016c1be1438163640a0898"),),
    ),
}


def folder_of(data_dir: str | Path | None) -> Path:
    """The folder of data sets: `data_dir`, or the default of TFDS."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def find(name: str, data_dir: str | None = None) -> Path | None:
    """The unpacked folder or the archive of a data set; None if neither exists, or for other sets.

    An archive takes precedence over an incomplete folder beside it.
    """
    if name not in LAYOUTS:
        return None
    layout = LAYOUTS[name]
    folder, archive = (folder_of(data_dir) / part for part in (layout.folder, layout.archive))
    if folder.is_dir() and (_whole(layout, folder) or not archive.exists()):
        return folder
    return archive if archive.exists() else None


def _whole(layout: Layout, folder: Path) -> bool:
    return all((folder / file.name).exists() for file in layout.train + layout.test)


def advice(name: str, data_dir: str | Path | None = None) -> str:
    """How to provide the files; empty for other data sets."""
    if name not in LAYOUTS:
        return ""
    layout = LAYOUTS[name]
    return (
        f"put {layout.archive}, the binary version on {PAGE} (MD5 {layout.archive_md5}), into"
        f" {folder_of(data_dir)}, packed or unpacked"
    )


def check(name: str, path: Path) -> None:
    """Checks that every file exists in its right size. Compares no content.

    Raises:
      UserError: one is missing, or has another size.
    """
    with _named(name, path):
        for _ in _files(name, path):
            pass


def read(name: str, path: Path) -> tuple[Arrays, Arrays]:
    """Training and test set, in the order of TensorFlow Datasets.

    Args:
      path: the result of `find`.

    Raises:
      UserError: a file is missing, damaged or not the official one.
    """
    layout = LAYOUTS[name]
    train, test = _empty(layout.train), _empty(layout.test)
    place = _places("train", layout.train) | _places("test", layout.test)
    restored = False
    with _named(name, path):
        for file, stream in _files(name, path):
            content = stream.read(layout.size(file))
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if md5 not in (file.md5, file.restored):
                raise _wrong(name, path, f"{file.name} has MD5 {md5} instead of {file.md5}")
            restored |= md5 == file.restored
            row = np.frombuffer(content, np.uint8).reshape(file.rows, -1)
            split = train if file in layout.train else test
            image = row[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            split.image[place[file]] = image
            split.label[place[file]] = row[:, layout.label_bytes - 1]
    if restored:
        log.warning("%s: some images are not the official ones but restored from JPEG", path)
    return train, test


def _empty(files: tuple[File, ...]) -> Arrays:
    num = sum(file.rows for file in files)
    return Arrays(np.empty((num, 32, 32, 3), np.uint8), np.empty(num, np.int32))


def _places(split: str, files: tuple[File, ...]) -> dict[File, np.ndarray]:
    """The destination rows of each file's rows."""
    rows = [file.rows for file in files]
    place = np.argsort(tfds_order(split, sum(rows)))
    return dict(zip(files, np.split(place, np.cumsum(rows)[:-1]), strict=True))


def tfds_order(split: str, num: int) -> np.ndarray:
    """Rows of the official files in the order in which TFDS stores them: [num] integers.

    TFDS sorts them by the MD5 of the split's name and their number. Source: TFDS 4.9.10,
    core/split_builder.py (the salt is the split), image_classification/cifar.py (the key is the
    number), core/hashing.py, core/shuffle.py.
    """
    key = [hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest() for i in range(num)]
    return np.array(sorted(range(num), key=key.__getitem__))


def _files(name: str, path: Path) -> Iterator[tuple[File, IO[bytes]]]:
    """Opens the files of a data set one after the other, in any order, and checks their sizes."""
    layout = LAYOUTS[name]
    missing = {file.name: file for file in layout.train + layout.test}
    for member, size, stream in (_unpacked if path.is_dir() else _packed)(path, layout, missing):
        file = missing.pop(member)
        if size != layout.size(file):
            raise _wrong(
                name, path, f"{member} has {size:,} bytes instead of {layout.size(file):,}"
            )
        yield file, stream
    if missing:
        raise _wrong(name, path, f"it has no {min(missing)}")


def _unpacked(path: Path, layout: Layout, missing: dict[str, File]) -> Iterator[Member]:
    for name in list(missing):
        if (path / name).exists():
            with open(path / name, "rb") as stream:
                yield name, os.fstat(stream.fileno()).st_size, stream


def _packed(path: Path, layout: Layout, missing: dict[str, File]) -> Iterator[Member]:
    wanted = {f"{layout.folder}/{name}": name for name in missing}
    with tarfile.open(path) as archive:
        for member in archive:
            name = wanted.pop(os.path.normpath(member.name), None)
            if name and member.isfile() and (stream := archive.extractfile(member)):
                yield name, member.size, stream


@contextlib.contextmanager
def _named(name: str, path: Path) -> Iterator[None]:
    """Turns read errors into one that names the path."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise _wrong(name, path, f"it cannot be read ({reason})") from None


def _wrong(name: str, path: Path, what: str) -> UserError:
    return UserError(f"{path} is not whole: {what}. Move it away and {advice(name, path.parent)}")
