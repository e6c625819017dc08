"""A folder of one's own images: PATH/train/CLASS/*.jpg|png and PATH/test|val/CLASS/...

Class numbers are the classes' places in alphabetical order; an example's index is its place when
files are sorted by class and then by name. Only files that can be read count: what else lies there
is named in the log and left out.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import unicodedata

import numpy as np

from atkd_jax.data import image_file
from atkd_jax.data.memory import Arrays, MemorySource, in_memory
from atkd_jax.errors import printable

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_NAMES = ("test", "val", "validation")
MEMORY_LIMIT = 2 * 2**30  # bytes of raw pixels; above, a folder is streamed
MAX_CORRUPT = 1e-3  # share of a split that may be unreadable before it is an error
STREAM_INSTEAD = (
    "; to train on random crops of one size, read from the disk as they are needed, add"
    " --config.data.options.image_size=N, such as 224 for photographs"
)
# Of characters that no class may have, Unicode's categories: they would break lines, or a file.
UNFIT = {"Cc": "control characters", "Zl": "line breaks", "Zp": "line breaks", "Cs": "no UTF-8"}
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
      ValueError: a split or a class is missing or empty, or a class has a name that cannot be
        written down; the message names the folder.
    """
    shown = printable(root)
    if not os.path.isdir(root):
        raise ValueError(f"there is no folder {shown}")
    if not os.path.isdir(os.path.join(root, "train")):
        raise ValueError(f"{shown} has no folder train: train/CLASS/*.jpg is expected")
    splits = [name for name in TEST_NAMES if os.path.isdir(os.path.join(root, name))]
    if not splits:
        raise ValueError(f"{shown} has no folder {' or '.join(TEST_NAMES)} to test on")
    if splits[1:]:
        log.warning("%s: tests on %s; %s is not used", shown, splits[0], " and ".join(splits[1:]))
    classes = _subfolders(os.path.join(root, "train"))
    if not classes:
        raise ValueError(f"{shown}/train has no folders: there is to be one per class")
    test_classes = _subfolders(os.path.join(root, splits[0]))
    if odd := sorted(set(classes) ^ set(test_classes)):
        where, other = ("train", splits[0]) if odd[0] in classes else (splits[0], "train")
        raise ValueError(f"{shown}: class {odd[0]!r} is in {where} and not in {other}")
    for name in classes:
        if unfit := sorted({UNFIT[c] for c in map(unicodedata.category, name) if c in UNFIT}):
            raise ValueError(
                f"{shown}: the folder name {name!r} is to be a class but has {unfit[0]} in it;"
                " rename the folder in all splits"
            )
    train, test = (_files(os.path.join(root, split), classes) for split in ("train", splits[0]))
    return Folder(root, classes, train, test)


def _subfolders(split: str) -> tuple[str, ...]:
    """The classes; what lies beside them is named."""
    visible = [entry for entry in os.scandir(split) if not entry.name.startswith(".")]
    beside = sorted(entry.name for entry in visible if not os.path.isdir(entry.path))
    if beside:
        log.warning(
            "%s: %d files lie beside the folders of the classes and are left out, the first is %s",
            printable(split), len(beside), printable(beside[0]),
        )  # fmt: skip
    return tuple(sorted(entry.name for entry in visible if os.path.isdir(entry.path)))


def _files(split: str, classes: tuple[str, ...]) -> Files:
    paths, labels = [], []
    left_out = {
        "folders inside of classes are not read": [],
        f"files are no {', '.join(SUFFIXES)} and are left out": [],
        "files cannot be read and are left out": [],
    }
    folders, others, unreadable = left_out.values()
    for k, name in enumerate(classes):
        number = len(paths)
        entries = os.scandir(os.path.join(split, name))
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):
                folders.append(entry.path)
            elif not entry.name.lower().endswith(SUFFIXES):
                others.append(entry.path)
            elif not os.path.isfile(entry.path) or not os.access(entry.path, os.R_OK):
                unreadable.append(entry.path)  # links into nowhere, pipes, files of others
            else:
                paths.append(entry.path)
        if len(paths) == number:
            raise ValueError(_empty(split, name, left_out))
        labels += [k] * (len(paths) - number)
    for why, found in left_out.items():
        if found:
            first = printable(os.path.relpath(found[0], split))
            log.warning("%s: %d %s, the first is %s", printable(split), len(found), why, first)
    return Files(np.array(paths, object), np.array(labels, np.int32))


def _empty(split: str, name: str, left_out: dict[str, list[str]]) -> str:
    folder = os.path.join(split, name)
    counts = [
        f"{number} {why}"
        for why, found in left_out.items()
        if (number := sum(os.path.dirname(path) == folder for path in found))
    ]
    found = f" ({'; '.join(counts)})" if counts else ""
    return f"{printable(folder)} is empty: it holds no {', '.join(SUFFIXES)}{found}"


def common_size(folder: Folder) -> tuple[int, int]:
    """(H, W) of all images, upright, of which only the headers are read.

    Raises:
      ValueError: they differ in size, or do not fit in memory together; the message says how
        many have which, and what to do.
    """
    files = [*folder.train.path, *folder.test.path]
    first_of, count = {}, collections.Counter()
    for path in files:
        try:
            size = image_file.size(path)
        except ValueError:  # corrupt: dealt with when it is read
            continue
        first_of.setdefault(size, path)
        count[size] += 1
    root = printable(folder.root)
    if not count:
        raise ValueError(f"{root}: none of its {len(files):,} images can be decoded")
    (most, often), *others = count.most_common()
    if others:
        size, rare = others[-1]
        example = printable(first_of[size])
        example += f", and {len(others) - 1:,} sizes more" if others[1:] else ""
        raise ValueError(
            f"{root}: its images differ in size (width x height): {often:,} of {_shown(most)},"
            f" {rare:,} of {_shown(size)}, such as {example}{STREAM_INSTEAD}"
        )
    needed = most[0] * most[1] * 3 * len(files)
    if needed > MEMORY_LIMIT:
        raise ValueError(
            f"{root}: its {len(files):,} images of {_shown(most)} need {needed / 2**30:,.1f} GiB in"
            f" memory, more than {MEMORY_LIMIT / 2**30:,.1f}{STREAM_INSTEAD}"
        )
    return most


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def read(folder: Folder, size: tuple[int, int]) -> MemorySource:
    """The whole folder in memory, as [N, H, W, 3] of the given (H, W).

    Raises:
      ValueError: more than 0.1 % of a split cannot be decoded. Up to that, such files are left out,
        named in the log.
    """
    train, test = (_read_split(files, size) for files in (folder.train, folder.test))
    return in_memory(f"folder:{printable(folder.root)}", train, test, folder.class_names)


def _read_split(files: Files, size: tuple[int, int]) -> Arrays:
    image = np.zeros((len(files.path), *size, 3), np.uint8)
    good = np.ones(len(files.path), bool)
    first = ""
    for i, path in enumerate(files.path):
        try:
            image[i] = image_file.decode(path)
        except ValueError as error:
            good[i] = False
            name = printable(path)
            first = first or f"{name} ({error})"
            log.warning("%s cannot be decoded and is left out (%s)", name, error)
    if (~good).sum() > MAX_CORRUPT * len(good):
        raise ValueError(
            f"{(~good).sum()} of {len(good)} images cannot be decoded, more than"
            f" {MAX_CORRUPT:.1%}; the first is {first}. Move them elsewhere or replace them"
        )
    return Arrays(image[good], files.label[good])
