"""Published weights are read without PyTorch and without running what a file says."""

import pickle
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax.models.torch_file import LEGACY_MAGIC, load_torch

# A pickle, opcode by opcode: what torch.save writes, and what it never would.


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Global
    args: tuple


class Persistent(NamedTuple):
    pid: tuple


def opcodes(x):
    match x:
        case None:
            return b"N"
        case bool():
            return b"\x88" if x else b"\x89"
        case int():
            return b"J" + x.to_bytes(4, "little", signed=True)
        case str():
            return b"X" + len(x.encode()).to_bytes(4, "little") + x.encode()
        case Global():
            return f"c{x.module}\n{x.name}\n".encode()
        case Call():
            return opcodes(x.function) + opcodes(x.args) + b"R"
        case Persistent():
            return opcodes(x.pid) + b"Q"
        case tuple():
            return b"(" + b"".join(map(opcodes, x)) + b"t"
        case dict():
            return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in x.items()) + b"u"
    raise TypeError(x)


def pickled(x):
    return b"\x80\x02" + opcodes(x) + b"."


def tensor(key, shape, strides, kind="FloatStorage", offset=0, count=24):
    storage = Persistent(("storage", Global("torch", kind), key, "cpu", count))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    ordered_dict = Call(Global("collections", "OrderedDict"), ())
    return Call(rebuild, (storage, offset, shape, strides, False, ordered_dict))


def write_zip(path, checkpoint, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(checkpoint))
        archive.writestr("archive/byteorder", "little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())


def write_legacy(path, checkpoint, storages):
    data = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2)
    data += pickle.dumps({"little_endian": True}, 2) + pickled(checkpoint)
    data += pickle.dumps(list(storages), 2)
    for values in storages.values():
        data += values.size.to_bytes(8, "little") + values.tobytes()
    path.write_bytes(data)


both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])

NUMBERS = np.arange(24, dtype=np.float32)


@both_formats
def test_tensors_of_a_checkpoint_are_read(tmp_path, write):
    checkpoint = {
        "epoch": 3,
        "best": tensor("0", (), ()),
        "state_dict": {
            "a": tensor("0", (2, 3, 4), (12, 4, 1)),
            "transposed": tensor("0", (4, 5), (1, 4), offset=4),
            "half": tensor("1", (4,), (1,), "HalfStorage"),
            "brain": tensor("2", (2,), (1,), "BFloat16Storage"),
            "parameter": Call(
                Global("torch._utils", "_rebuild_parameter"),
                (tensor("3", (2,), (1,), "LongStorage"), True, {}),
            ),
        },
    }
    storages = {
        "0": NUMBERS,
        "1": np.array([1, 2, 3, 4], np.float16),
        "2": np.array([1.5, -2], jnp.bfloat16),
        "3": np.array([7, 8]),
    }
    write(tmp_path / "net.pth", checkpoint, storages)
    tensors = load_torch(tmp_path / "net.pth")
    assert list(tensors) == ["a", "transposed", "half", "brain", "parameter"]
    np.testing.assert_array_equal(tensors["a"], NUMBERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(tensors["transposed"], NUMBERS[4:].reshape(5, 4).T)
    for name, key in (("half", "1"), ("brain", "2"), ("parameter", "3")):
        np.testing.assert_array_equal(tensors[name], storages[key])
        assert tensors[name].dtype == storages[key].dtype


@both_formats
@pytest.mark.parametrize(
    "function", [Global("os", "system"), Global("builtins", "eval"), Global("torch", "load")]
)
def test_code_in_a_file_is_refused_and_not_run(tmp_path, write, function):
    made = tmp_path / "made"
    command = f"touch {made}" if function.name == "system" else f"open({str(made)!r}, 'w')"
    write(tmp_path / "net.pth", {"a": Call(function, (command,))}, {})
    with pytest.raises(ValueError, match=rf"asks for {function.module}\.{function.name}, .*never"):
        load_torch(tmp_path / "net.pth")
    assert not made.exists()


@both_formats
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((25,), (1,), 0), ((24,), (1,), 1), ((2, 2), (24, 1), 0), ((1000,), (0,), 0), ((2,), (-1,), 5)]
    + [((2,), (1,), -3)],
)
def test_tensors_beyond_their_numbers_are_refused(tmp_path, write, shape, strides, offset):
    write(tmp_path / "net.pth", {"a": tensor("0", shape, strides, offset=offset)}, {"0": NUMBERS})
    with pytest.raises(ValueError, match="reaches beyond its numbers"):
        load_torch(tmp_path / "net.pth")


def test_other_files_are_refused_in_words(tmp_path):
    def refused(name, message):
        with pytest.raises(ValueError, match=message):
            load_torch(tmp_path / name)

    refused("none.pth", "there is no weights file")
    (tmp_path / "text.pth").write_text("weights")
    refused("text.pth", "torch.save")
    (tmp_path / "other.pth").write_bytes(pickle.dumps({"a": 1}))
    refused("other.pth", "torch.save")
    np.savez(tmp_path / "numpy.npz", a=NUMBERS)
    refused("numpy.npz", "a zip file, but torch.save did not write it")
    (tmp_path / "text.safetensors").write_text("weights, but not those of a network")
    refused("text.safetensors", "cannot read weights")
    write_zip(tmp_path / "empty.pth", {"epoch": 1, "lr": 2}, {})
    refused("empty.pth", "no state dict, only epoch, lr")
    write_zip(tmp_path / "lone.pth", tensor("0", (24,), (1,)), {"0": NUMBERS})
    refused("lone.pth", "not a state dict")
    write_legacy(tmp_path / "cut.pth", {"a": tensor("0", (24,), (1,))}, {"0": NUMBERS})
    whole = (tmp_path / "cut.pth").read_bytes()
    for end in (len(whole) - 1, len(whole) // 2, 20):
        (tmp_path / "cut.pth").write_bytes(whole[:end])
        refused("cut.pth", "cannot read weights")
