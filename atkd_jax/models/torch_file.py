"""Reads the tensors of a PyTorch or safetensors file, without PyTorch and without running its code.

The format is detected from the content. A size that a file states is trusted only if that many
bytes are present, so no file costs much more memory than its own size.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from atkd_jax.errors import UserError
from atkd_jax.models import plain_pickle
from atkd_jax.models.plain_pickle import Storage, Tensor, Unreadable, is_number, shown
from atkd_jax.models.state_dict import Weights, choose, listed

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# https://huggingface.co/docs/safetensors, "Format".
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

# Before PyTorch 1.6 torch.save began a file with this number as a pickle, mostly of protocol 2;
# from protocol 4 on, the nine bytes of a frame precede it.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_NUMBER = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
LEGACY_START = b"\x80\x02" + LEGACY_NUMBER
ZIP_START = b"PK\x03\x04"
MOST_DESCRIPTION = 2**24  # bytes that describe tensors; the 320 of a ResNet-50 take 2**16
AGAIN = "download or copy it again"


def load_torch(path: str | Path, key: str = "") -> Weights[np.ndarray]:
    """The weights in a file.

    A network's weights are a dictionary of tensors with a dot in their names, as in "conv1.weight".
    If a checkpoint holds several, the one that is not a moving average of another is read.

    Args:
      path: a file of safetensors or of torch.save (either format), under any name.
      key: of the weights in the file, such as "state_dict_ema", or a prefix of their names,
        "teacher" of "teacher.conv1.weight"; nested keys are joined by dots.

    Raises:
      UserError: there is no such file, it is damaged or of another format, it holds no weights,
        more than one choice of them or none under `key`, or it would run code.
    """
    path = Path(path)
    cause: Exception
    try:
        return READERS[_kind(path)](path, key)
    except Unreadable as error:
        cause, reason = error, str(error)
    except MemoryError as error:
        cause, reason = error, "there is too little memory for it"
    except OSError as error:
        cause, reason = error, error.strerror or f"it is damaged; {AGAIN}"
    except Exception as error:  # of NumPy, zipfile, json or `plain_pickle` for a damaged file
        cause, reason = error, f"it is damaged; {AGAIN}"
    raise UserError(f"cannot read weights from {path}: {reason}") from cause


def check_kind(path: Path) -> None:
    """Raises UserError unless a file begins as weights do; reads only that beginning."""
    try:
        _kind(path)
    except Unreadable as error:
        raise UserError(f"cannot read weights from {path}: {error}") from error


def _kind(path: Path) -> str:
    if not path.is_file():
        raise Unreadable("it is a folder" if path.is_dir() else "there is no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise Unreadable(f"it is empty; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise Unreadable(
            "it is a pointer of git-lfs and not the weights; `git lfs pull` in its repository"
            " fetches them"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Unreadable(
            "it is a web page and not the weights: the link led to a page about them, or the"
            " download failed; open it in a browser to see what it says"
        )
    if head[:1] == b"\x80" and LEGACY_NUMBER in head[:24]:
        return "legacy"
    if head.startswith(ZIP_START):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MOST_DESCRIPTION:
        return "safetensors"
    if LEGACY_START.startswith(head) or ZIP_START.startswith(head) or size < 9:
        raise Unreadable(f"it is cut off after {size} bytes; {AGAIN}")
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        raise Unreadable("it is a compressed or packed archive; unpack it and give the file inside")
    if head[0] == 0x80:
        raise Unreadable("it is a pickle that was not written by torch.save; save it with that")
    raise Unreadable(
        f"neither torch.save nor safetensors wrote it; it begins with {ascii(head[:16])[1:]}"
    )


def _read_zip(path: Path, key: str) -> Weights[np.ndarray]:
    with _Bounded(io.FileIO(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise Unreadable(f"it is cut off, or damaged at its end; {AGAIN}") from error
        file.most = size = path.stat().st_size
        members = {x.filename: x for x in archive.infolist()}
        pickled = next((x for x in members if x.endswith("/data.pkl")), None)
        if pickled is None:
            raise Unreadable(
                f"it is a zip file that torch.save did not write, with {listed(members)}; if one of"
                " these is the weights, unpack it"
            )
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise Unreadable("it is a TorchScript program; save its state_dict() with torch.save")
        if any(x.compress_type != zipfile.ZIP_STORED for x in members.values()):
            raise Unreadable(
                "its members are compressed, as torch.save never does; unpack it and pack it again"
                " with `zip -0 -r`"
            )
        if members[pickled].file_size > MOST_DESCRIPTION:
            raise Unreadable(_too_much())
        if f"{folder}byteorder" in members:
            _check_byte_order(archive.read(f"{folder}byteorder") == b"little")
        found = choose(plain_pickle.load(io.BytesIO(archive.read(pickled)))[0], key)
        names = {x.storage.key: f"{folder}data/{x.storage.key}" for x in found.tensors.values()}
        if lost := [name for name in names.values() if name not in members]:
            raise Unreadable(f"its member {shown(lost[0])} is missing; {AGAIN}")
        if sum(members[name].file_size for name in names.values()) > size:
            raise Unreadable(f"its members are larger than itself; {AGAIN}")
        storages = {storage: archive.read(name) for storage, name in names.items()}
    return _with_numbers(found, storages)


class _Bounded(io.BufferedReader):
    """A file that refuses reads of more than `most` bytes, whatever sizes it states."""

    most = MOST_DESCRIPTION

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.most:
            raise Unreadable(_too_much())
        return super().read(size)


def _read_legacy(path: Path, key: str) -> Weights[np.ndarray]:
    """Five pickles (magic number, version, machine, checkpoint, storage keys), then storages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MOST_DESCRIPTION))
        try:
            _, _, (machine, _), (checkpoint, kinds), (keys, _) = (
                plain_pickle.load(head) for _ in range(5)
            )
        except Unreadable:
            if head.tell() == MOST_DESCRIPTION:
                raise Unreadable(_too_much()) from None
            raise
        _check_byte_order(machine["little_endian"] is True)
        found = choose(checkpoint, key)
        wanted, storages = {x.storage.key for x in found.tensors.values()}, {}
        file.seek(head.tell())
        for name in keys:
            if type(name) is not str:
                raise TypeError("a storage's key is its name")
            count = file.read(8)
            length = int.from_bytes(count, "little")
            length *= np.dtype(_type(STORAGES, kinds[name].kind)).itemsize
            if len(count) < 8 or length > size - file.tell():
                raise Unreadable(f"it is cut off after {size} bytes, within its numbers; {AGAIN}")
            if name in wanted:
                storages[name] = file.read(length)
            else:
                file.seek(length, io.SEEK_CUR)
    if lost := wanted - storages.keys():
        raise Unreadable(f"the numbers of its storage {shown(min(lost))} are missing; {AGAIN}")
    return _with_numbers(found, storages)


def _read_safetensors(path: Path, key: str) -> Weights[np.ndarray]:
    """A length, a JSON dictionary of that many bytes, and the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise Unreadable(f"it is cut off after {size} bytes, within its header; {AGAIN}")
        header = json.loads(file.read(length))
        numbers = file.read()
    header.pop("__metadata__", None)
    end = max((x["data_offsets"][1] for x in header.values()), default=0)
    if end > len(numbers):
        raise Unreadable(f"it is cut off after {size} bytes of {8 + length + end}; {AGAIN}")
    tensors, storages = {}, {}
    for name, x in header.items():
        begin, end = x["data_offsets"]
        shape = tuple(x["shape"])
        width = np.dtype(_type(SAFETENSORS, x["dtype"])).itemsize
        numbers_only = len(shape) <= plain_pickle.MOST_DIMENSIONS and all(map(is_number, shape))
        if not numbers_only or min(shape, default=0) < 0:
            raise Unreadable(f"its tensor {shown(name)} has an impossible shape; {AGAIN}")
        if not 0 <= begin <= end or end - begin != math.prod(shape) * width:
            raise Unreadable(f"its tensor {shown(name)} has not as many numbers as its shape says")
        tensors[name] = Tensor(Storage(x["dtype"], name), 0, shape, _contiguous(shape))
        storages[name] = memoryview(numbers)[begin:end]
    return _with_numbers(choose(tensors, key), storages)


READERS = {"zip": _read_zip, "legacy": _read_legacy, "safetensors": _read_safetensors}


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _check_byte_order(little: bool) -> None:
    if not little:
        raise Unreadable("it was written on a big-endian machine")


def _too_much() -> str:
    return (
        f"what it says of its tensors takes more than {MOST_DESCRIPTION >> 20} MiB; save the"
        " network's state_dict() alone"
    )


def _type(table: Mapping[str, Any], name: str) -> Any:
    if name not in table:
        raise Unreadable(
            f"it holds tensors of the type {shown(name)}, which is not read; save them as float32"
        )
    return table[name]


def _with_numbers(
    found: Weights[Tensor], storages: Mapping[str, bytes | memoryview]
) -> Weights[np.ndarray]:
    arrays = {k: _array(x, storages[x.storage.key]) for k, x in found.tensors.items()}
    return Weights(arrays, found.key, found.others)


def _array(tensor: Tensor, storage: bytes | memoryview) -> np.ndarray:
    values = np.frombuffer(storage, _type(STORAGES | SAFETENSORS, tensor.storage.kind))
    layout = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in layout)
    inside = min(tensor.offset, *tensor.shape, *tensor.strides, 0) == 0 and last < values.size
    if not inside or math.prod(tensor.shape) > values.size:
        raise Unreadable(f"a tensor reaches beyond its numbers; {AGAIN}")
    strides = [stride * values.itemsize for stride in tensor.strides]
    view = values[tensor.offset :]
    return np.lib.stride_tricks.as_strided(view, tensor.shape, strides, writeable=False)
