"""A folder of one's own images: PATH/train/CLASS/*.jpg|png and PATH/test|val/CLASS/...

Class numbers are the classes' places in alphabetical order; an example's index is its place when
files are sorted by class and then by name.
"""

from __future__ import annotations

import dataclasses
import logging
import os

import numpy as np
from PIL import Image

from atkd_jax.data.memory import Arrays, MemorySource, in_memory

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_NAMES = ("test", "val", "validation")
MEMORY_LIMIT = 2 * 2**30  # bytes of raw pixels; above, a folder is streamed
MAX_CORRUPT = 1e-3  # share of a split that may be unreadable before it is an error
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """One split: path and class of every image, [N] object and [N] int32."""

    path: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """What lies in a folder of images, none of which has been opened."""

    root: str
    class_names: tuple[str, ...]
    train: Files
    test: Files


def find(root: str) -> Folder:
    """Lists the images.

    Raises:
      ValueError: a split or a class is missing or empty; the message names the folder.
    """
    if not os.path.isdir(root):
        raise ValueError(f"there is no folder {root}")
    if not os.path.isdir(os.path.join(root, "train")):
        raise ValueError(f"{root} has no folder train: train/CLASS/*.jpg is expected")
    splits = [name for name in TEST_NAMES if os.path.isdir(os.path.join(root, name))]
    if not splits:
        raise ValueError(f"{root} has no folder {' or '.join(TEST_NAMES)} to test on")
    classes = _subfolders(os.path.join(root, "train"))
    if not classes:
        raise ValueError(f"{root}/train has no folders: there is to be one per class")
    test_classes = _subfolders(os.path.join(root, splits[0]))
    if odd := sorted(set(classes) ^ set(test_classes)):
        where, other = ("train", splits[0]) if odd[0] in classes else (splits[0], "train")
        raise ValueError(f"{root}: class {odd[0]!r} is in {where} and not in {other}")
    train, test = (_files(os.path.join(root, split), classes) for split in ("train", splits[0]))
    return Folder(root, classes, train, test)


def _subfolders(path: str) -> tuple[str, ...]:
    found = (entry.name for entry in os.scandir(path) if entry.is_dir())
    return tuple(sorted(name for name in found if not name.startswith(".")))


def _files(split: str, classes: tuple[str, ...]) -> Files:
    paths, labels, ignored = [], [], []
    for k, name in enumerate(classes):
        visible = sorted(f for f in os.listdir(os.path.join(split, name)) if f[0] != ".")
        images = [f for f in visible if f.lower().endswith(SUFFIXES)]
        ignored += [os.path.join(name, f) for f in visible if f not in images]
        if not images:
            raise ValueError(f"{split}/{name} is empty: it holds no {', '.join(SUFFIXES)}")
        paths += [os.path.join(split, name, f) for f in images]
        labels += [k] * len(images)
    if ignored:
        log.warning(
            "%s: %d files are no %s and are left out, the first is %s",
            split, len(ignored), ", ".join(SUFFIXES), ignored[0],
        )  # fmt: skip
    return Files(np.array(paths, object), np.array(labels, np.int32))


def common_size(folder: Folder) -> tuple[int, int] | None:
    """(H, W) if all images have one size and fit in memory together, else None.

    Reads the files' headers only, and stops at the first that differs.
    """
    paths = [*folder.train.path, *folder.test.path]
    size = None
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, ValueError):  # corrupt: dealt with when it is read
            continue
        if size not in (None, (height, width)) or height * width * 3 * len(paths) > MEMORY_LIMIT:
            return None
        size = (height, width)
    return size


def read(folder: Folder, size: tuple[int, int]) -> MemorySource:
    """The whole folder in memory, as [N, H, W, 3] of the given (H, W).

    Raises:
      ValueError: more than 0.1 % of a split cannot be decoded. Up to that, such files are left out,
        named in the log.
    """
    train, test = (_read_split(files, size) for files in (folder.train, folder.test))
    return in_memory(f"folder:{folder.root}", train, test, folder.class_names)


def _read_split(files: Files, size: tuple[int, int]) -> Arrays:
    image = np.zeros((len(files.path), *size, 3), np.uint8)
    good = np.ones(len(files.path), bool)
    for i, path in enumerate(files.path):
        try:
            image[i] = decode(path)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
            good[i] = False
            log.warning("%s cannot be decoded and is left out (%s)", path, error)
    if (~good).sum() > MAX_CORRUPT * len(good):
        raise ValueError(
            f"{(~good).sum()} of {len(good)} images cannot be decoded, more than"
            f" {MAX_CORRUPT:.1%}; the first is {files.path[~good][0]}. Remove or replace them"
        )
    return Arrays(image[good], files.label[good])


def decode(path: str) -> np.ndarray:
    """[H, W, 3] uint8 of a file that may be grey, CMYK, with a palette, 16 bits deep or with alpha.

    Alpha is dropped, not blended: the colours below it are what a network sees.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16 bits: Pillow would clip them to 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
