"""A NumPy archive with x_train, y_train, x_test and y_test.

The headers are checked before an array is read, so that a wrong file costs no memory.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from atkd_jax.data.memory import Arrays, MemorySource, from_arrays
from atkd_jax.errors import UserError

NAMES = ("x_train", "y_train", "x_test", "y_test")
HEADER_BYTES = 2**16  # more than the header of any array of numbers has


class Header(NamedTuple):
    """Shape and type of an array, from its header."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read(path: str) -> MemorySource:
    """The data set in an archive.

    Args:
      path: images uint8 [N, H, W, 3], labels integers [N] in 0..K-1, where K - 1 is the largest
        label in y_train.

    Raises:
      UserError: the file does not hold that; the message names the array and what is wrong.
    """
    check(path)
    with _open(path) as file:
        x_train, y_train, x_test, y_test = (_array(file, name) for name in NAMES)
    for name, y in (("y_train", y_train), ("y_test", y_test)):
        if y.min() < 0:
            raise UserError(f"{path}: {name} has label {y.min()}, labels are 0..K-1")
    seen = np.unique(y_train)
    classes = int(seen[-1]) + 1
    if len(seen) < classes:
        unseen = next(k for k, label in enumerate(seen) if k != label)
        raise UserError(
            f"{path}: y_train reaches {classes - 1} but has no example of class {unseen};"
            " number the classes 0..K-1"
        )
    if y_test.max() >= classes:
        raise UserError(
            f"{path}: y_test has label {y_test.max()}, the classes of y_train are 0..{classes - 1}"
        )
    return from_arrays(
        f"npz:{path}",
        Arrays(x_train, y_train.astype(np.int32)),
        Arrays(x_test, y_test.astype(np.int32)),
        tuple(str(k) for k in range(classes)),
    )


def check(path: str) -> dict[str, Header]:
    """The headers of the four arrays. Reads none of their data.

    Raises:
      UserError: `read` would refuse them.
    """
    with _open(path) as file:
        held = sorted(name.removesuffix(".npy") for name in file.namelist())
        for name in NAMES:
            if name not in held:
                raise UserError(
                    f"{path} has no array {name}: it holds {held[:8]}, needed are {NAMES}"
                )
        found = {name: _header(file, name) for name in NAMES}
    for split in ("train", "test"):
        _check_split(path, split, found[f"x_{split}"], found[f"y_{split}"])
    train, test = found["x_train"].shape[1:], found["x_test"].shape[1:]
    if train != test:
        raise UserError(f"{path}: images of x_train are {train}, of x_test {test}")
    return found


def _check_split(path: str, split: str, x: Header, y: Header) -> None:
    """Raises UserError unless x is uint8 [N, H, W, 3] and y holds N integers."""
    if x.dtype != np.uint8:
        raise UserError(f"{path}: x_{split} is {x.dtype}, it must be uint8 (pixels 0..255)")
    if len(x.shape) != 4 or x.shape[-1] != 3:
        raise UserError(f"{path}: x_{split} has shape {x.shape}, it must be (N, H, W, 3)")
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{path}: y_{split} is {y.dtype}, it must hold integers")
    if y.shape != x.shape[:1]:
        raise UserError(
            f"{path}: y_{split} has shape {y.shape}, it must be {x.shape[:1]} like x_{split}"
        )
    if 0 in x.shape:
        raise UserError(f"{path}: x_{split} is empty, its shape is {x.shape}")


def _header(file: zipfile.ZipFile, name: str) -> Header:
    """An array's header, checked against the number of bytes in the archive."""
    with _member(file, name) as (stream, size):
        head = io.BytesIO(stream.read(HEADER_BYTES))
        version = np.lib.format.read_magic(head)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(head)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(head)
        if dtype.hasobject:
            raise TypeError("it holds Python objects")
        claimed, held = math.prod(shape) * dtype.itemsize, size - head.tell()
        if claimed != held or min(shape, default=0) < 0:
            raise EOFError(f"its shape {shape} takes {claimed:,} bytes, the archive has {held:,}")
    return Header(shape, dtype)


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with _member(file, name) as (stream, _):
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextlib.contextmanager
def _member(file: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """One array's bytes and their number. Errors name the array."""
    try:
        with file.open(f"{name}.npy") as stream:
            yield stream, file.getinfo(f"{name}.npy").file_size
    except Exception as error:
        raise _unreadable(file.filename, error, f"{name}, ") from None


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | None, error: Exception, array: str = "") -> UserError:
    """The error for damaged bytes: zipfile and NumPy raise a dozen kinds of exceptions."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return UserError(f"{path} cannot be read as .npz: {array}{reason}")
