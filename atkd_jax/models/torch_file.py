"""Reads the tensors of a PyTorch or safetensors file, without PyTorch and without running its code.

A .pth, .pt or .th file is a pickle, and a pickle is a program. It is run here by an unpickler that
knows nothing but ordered dictionaries and the functions that rebuild tensors.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

# Where checkpoints keep the network among the optimiser, the epoch and so on.
STATE_DICTS = ("state_dict", "model", "net")

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

# The first number of a file written by torch.save before PyTorch 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Tensor(NamedTuple):
    """A tensor of which the numbers have not been read: a view of the storage `key`."""

    storage: str
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a file, as {name: array} with PyTorch's names, shapes and dtypes.

    Args:
      path: a .safetensors file, or one written by torch.save (.pth, .pt, .th; either format). In a
        checkpoint, the state dict is looked for under "state_dict", "model" and "net".

    Raises:
      ValueError: there is no such file, it is damaged or of another kind, it holds no state dict,
        or it wants to do more than rebuild tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        return read(path)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"cannot read weights from {path}: {error}") from error


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        pickled = next((x for x in archive.namelist() if x.endswith("/data.pkl")), None)
        if pickled is None:
            raise ValueError("it is a zip file, but torch.save did not write it")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            _check_byte_order(archive.read(f"{folder}byteorder") == b"little")
        tensors = _state_dict(_Unpickler(io.BytesIO(archive.read(pickled))).load())
        storages = {x.key: archive.read(f"{folder}data/{x.key}") for x in tensors.values()}
    return {name: _array(x, storages[x.key]) for name, x in tensors.items()}


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    """Five pickles (magic number, version, machine, checkpoint, storage keys), then storages."""
    with path.open("rb") as file:
        if file.peek(1)[:1] != pickle.PROTO or _Unpickler(file).load() != LEGACY_MAGIC:
            raise ValueError("it was not written by torch.save")
        _Unpickler(file).load()
        _check_byte_order(_Unpickler(file).load()["little_endian"])
        unpickler = _Unpickler(file)
        tensors = _state_dict(unpickler.load())
        storages = {}
        for key in _Unpickler(file).load():
            count = int.from_bytes(file.read(8), "little")
            size = np.dtype(STORAGES[unpickler.storages[key]]).itemsize
            storages[key] = file.read(count * size)
    return {name: _array(x, storages[x.key]) for name, x in tensors.items()}


class _Unpickler(pickle.Unpickler):
    """Runs a pickle that may only build plain values, ordered dictionaries and `Tensor`s."""

    def __init__(self, file: Any):
        super().__init__(file)
        self.storages: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        # The functions are made anew each time: a pickle can set attributes of what it is given.
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch", _ if name in STORAGES:
                return name
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, *_: Tensor(
                    *storage, offset, tuple(shape), tuple(strides)
                )
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", "Size":
                return lambda shape: tuple(shape)
        raise ValueError(
            f"it asks for {module}.{name}, and only tensors are read, never code; "
            "save the network's state_dict() alone"
        )

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        kind, storage, key, _, _, *view = pid
        if kind != "storage" or storage not in STORAGES or any(view):
            raise ValueError(f"it holds a storage of an unknown kind, {pid}")
        self.storages[key] = storage
        return storage, key


def _check_byte_order(little: bool) -> None:
    if not little:
        raise ValueError("it was written on a big-endian machine")


def _state_dict(checkpoint: Any) -> dict[str, Tensor]:
    if not isinstance(checkpoint, dict):
        raise ValueError(f"it holds a {type(checkpoint).__name__}, not a state dict")
    inner = [checkpoint[key] for key in STATE_DICTS if isinstance(checkpoint.get(key), dict)]
    for candidate in [*inner, checkpoint]:
        tensors = {k: v for k, v in candidate.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"it holds no state dict, only {', '.join(map(str, checkpoint))}")


def _array(tensor: Tensor, storage: bytes) -> np.ndarray:
    values = np.frombuffer(storage, STORAGES[tensor.storage])
    layout = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in layout)
    inside = min(tensor.offset, *tensor.shape, *tensor.strides, 0) == 0 and last < values.size
    if not inside or math.prod(tensor.shape) > values.size:
        raise ValueError("a tensor reaches beyond its numbers")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()
