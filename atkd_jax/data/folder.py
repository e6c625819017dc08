"""A folder of images: PATH/train/CLASS/*.jpg|png and PATH/test|val/CLASS/...

Classes are numbered in alphabetical order; an example's index is its place when files are sorted by
class and then by name. Only readable files count: everything else is logged and left out.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import unicodedata

import numpy as np

from atkd_jax.data import image_file
from atkd_jax.data.memory import Arrays, MemorySource, from_arrays
from atkd_jax.errors import UserError, printable

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_NAMES = ("test", "val", "validation")
MEMORY_LIMIT = 2 * 2**30  # bytes of raw pixels; above, a folder is streamed
MAX_CORRUPT = 1e-3  # share of a split that may be corrupt before it is an error
STREAM_INSTEAD = (
    "; to train on random crops of one size, read from the disk as they are needed, add"
    " --config.data.options.image_size=N, such as 224 for photographs"
)
# Unicode categories that a class name must not contain: they would break lines, or a file.
UNFIT = {"Cc": "control characters", "Zl": "line breaks", "Zp": "line breaks", "Cs": "no UTF-8"}
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """One split: path and class of every image, [N] object and [N] int32."""

    path: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """The files in a folder of images, none of which has been opened."""

    root: str
    class_names: tuple[str, ...]
    train: Files
    test: Files


def find(root: str) -> Listing:
    """Lists the images.

    Raises:
      UserError: a split or a class is missing or empty, or a class name cannot be written to a
        text file; the message names the folder.
    """
    shown = printable(root)
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {shown}")
    if not os.path.isdir(os.path.join(root, "train")):
        raise UserError(f"{shown} has no folder train: train/CLASS/*.jpg is expected")
    splits = [name for name in TEST_NAMES if os.path.isdir(os.path.join(root, name))]
    if not splits:
        raise UserError(f"{shown} has no folder {' or '.join(TEST_NAMES)} to test on")
    if splits[1:]:
        log.warning("%s: tests on %s; %s is not used", shown, splits[0], " and ".join(splits[1:]))
    classes = _subfolders(os.path.join(root, "train"))
    if not classes:
        raise UserError(f"{shown}/train has no folders: there is to be one per class")
    test_classes = _subfolders(os.path.join(root, splits[0]))
    if odd := sorted(set(classes) ^ set(test_classes)):
        where, other = ("train", splits[0]) if odd[0] in classes else (splits[0], "train")
        raise UserError(f"{shown}: class {odd[0]!r} is in {where} and not in {other}")
    for name in classes:
        if unfit := sorted({UNFIT[c] for c in map(unicodedata.category, name) if c in UNFIT}):
            raise UserError(
                f"{shown}: the folder name {name!r} is to be a class but has {unfit[0]} in it;"
                " rename the folder in all splits"
            )
    train, test = (_files(os.path.join(root, split), classes) for split in ("train", splits[0]))
    return Listing(root, classes, train, test)


def _subfolders(split: str) -> tuple[str, ...]:
    """The classes. Logs files that lie beside them."""
    visible = [entry for entry in os.scandir(split) if not entry.name.startswith(".")]
    beside = sorted(entry.name for entry in visible if not os.path.isdir(entry.path))
    if beside:
        log.warning(
            "%s: %d files lie beside the folders of the classes and are left out, the first is %s",
            printable(split), len(beside), printable(beside[0]),
        )  # fmt: skip
    return tuple(sorted(entry.name for entry in visible if os.path.isdir(entry.path)))


def _files(split: str, classes: tuple[str, ...]) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    left_out: dict[str, list[str]] = {
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
            raise UserError(_empty(split, name, left_out))
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


def common_size(folder: Listing) -> tuple[int, int]:
    """(H, W) that all upright images have in common. Reads only the headers.

    Raises:
      UserError: the sizes differ, or the images do not fit in memory together; the message
        counts the sizes and names the remedy.
    """
    files = [*folder.train.path, *folder.test.path]
    first_of: dict[tuple[int, int], str] = {}
    count: collections.Counter[tuple[int, int]] = collections.Counter()
    for path in files:
        try:
            size = image_file.size(path)
        except UserError:  # corrupt: reported when it is read
            continue
        first_of.setdefault(size, path)
        count[size] += 1
    root = printable(folder.root)
    if not count:
        raise UserError(f"{root}: none of its {len(files):,} images can be decoded")
    (most, often), *others = count.most_common()
    if others:
        size, rare = others[-1]
        example = printable(first_of[size])
        example += f", and {len(others) - 1:,} sizes more" if others[1:] else ""
        raise UserError(
            f"{root}: its images differ in size (width x height): {often:,} of {_shown(most)},"
            f" {rare:,} of {_shown(size)}, such as {example}{STREAM_INSTEAD}"
        )
    needed = most[0] * most[1] * 3 * len(files)
    if needed > MEMORY_LIMIT:
        raise UserError(
            f"{root}: its {len(files):,} images of {_shown(most)} need {needed / 2**30:,.1f} GiB in"
            f" memory, more than {MEMORY_LIMIT / 2**30:,.1f}{STREAM_INSTEAD}"
        )
    return most


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def read(folder: Listing, size: tuple[int, int]) -> MemorySource:
    """Reads the whole folder into memory, as [N, H, W, 3] of the given (H, W).

    Raises:
      UserError: more than 0.1 % of a split cannot be decoded. Fewer are logged and left out.
    """
    train, test = (_read_split(files, size) for files in (folder.train, folder.test))
    return from_arrays(f"folder:{printable(folder.root)}", train, test, folder.class_names)


def _read_split(files: Files, size: tuple[int, int]) -> Arrays:
    image = np.zeros((len(files.path), *size, 3), np.uint8)
    good = np.ones(len(files.path), bool)
    first = ""
    for i, path in enumerate(files.path):
        try:
            image[i] = image_file.decode(path)
        except UserError as error:
            good[i] = False
            name = printable(path)
            first = first or f"{name} ({error})"
            log.warning("%s cannot be decoded and is left out (%s)", name, error)
    if (~good).sum() > MAX_CORRUPT * len(good):
        raise UserError(
            f"{(~good).sum()} of {len(good)} images cannot be decoded, more than"
            f" {MAX_CORRUPT:.1%}; the first is {first}. Move them elsewhere or replace them"
        )
    return Arrays(image[good], files.label[good])
