"""Files of weights, written byte by byte: what torch.save writes, and what it never would."""

import io
import json
import pickle
import struct
import zipfile
from typing import NamedTuple

from atkd_jax.models.torch_file import LEGACY_MAGIC


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Global
    args: tuple


class Persistent(NamedTuple):
    pid: tuple


class Raw(NamedTuple):
    """Instructions as they are."""

    code: bytes


def opcodes(x):
    match x:
        case None:
            return b"N"
        case bool():
            return b"\x88" if x else b"\x89"
        case int():
            return b"J" + x.to_bytes(4, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", x)
        case str():
            return b"X" + len(x.encode()).to_bytes(4, "little") + x.encode()
        case Raw():
            return x.code
        case Global():
            return f"c{x.module}\n{x.name}\n".encode()
        case Call():
            return opcodes(x.function) + opcodes(x.args) + b"R"
        case Persistent():
            return opcodes(x.pid) + b"Q"
        case tuple():
            return b"(" + b"".join(map(opcodes, x)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, x)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in x.items()) + b"u"
    raise TypeError(x)


def pickled(x):
    return b"\x80\x02" + opcodes(x) + b"."


def tensor(key="0", shape=(2, 3), strides=(3, 1), kind="FloatStorage", offset=0, count=24):
    storage = Persistent(("storage", Global("torch", kind), key, "cpu", count))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, ordered_dict()))


def ordered_dict(*args):
    return Call(Global("collections", "OrderedDict"), args)


def zip_bytes(code, storages, compression=zipfile.ZIP_STORED):
    """A file of PyTorch 1.6 or newer; `code` is the pickle's, `storages` {key: array}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/byteorder", "little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
    return out.getvalue()


def legacy_bytes(code, storages):
    """A file of an older PyTorch."""
    data = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2)
    data += pickle.dumps({"little_endian": True}, 2) + code
    data += pickle.dumps(list(storages), 2)
    for values in storages.values():
        data += values.size.to_bytes(8, "little") + values.tobytes()
    return data


def safetensors_bytes(header, numbers):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def write_zip(path, checkpoint, storages):
    path.write_bytes(zip_bytes(pickled(checkpoint), storages))


def write_legacy(path, checkpoint, storages):
    path.write_bytes(legacy_bytes(pickled(checkpoint), storages))
