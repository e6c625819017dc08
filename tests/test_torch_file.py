"""Published weights are read without PyTorch and without running what a file says."""

import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from weight_files import (
    Call,
    Global,
    legacy_bytes,
    opcodes,
    ordered_dict,
    pickled,
    safetensors_bytes,
    tensor,
    write_legacy,
    write_zip,
    zip_bytes,
)

from atkd_jax.models.torch_file import load_torch

both_formats = pytest.mark.parametrize("write", [write_zip, write_legacy])

NUMBERS = np.arange(24, dtype=np.float32)


@both_formats
def test_tensors_of_a_checkpoint_are_read(tmp_path, write):
    checkpoint = {
        "epoch": 3,
        "best": tensor("0", (), ()),
        "state_dict": {
            "fc.weight": tensor("0", (2, 3, 4), (12, 4, 1)),
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
    tensors, key, others = load_torch(tmp_path / "net.pth")
    assert list(tensors) == ["fc.weight", "transposed", "half", "brain", "parameter"]
    assert (key, others) == ("state_dict", ())
    np.testing.assert_array_equal(tensors["fc.weight"], NUMBERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(tensors["transposed"], NUMBERS[4:].reshape(5, 4).T)
    for name, key in (("half", "1"), ("brain", "2"), ("parameter", "3")):
        np.testing.assert_array_equal(tensors[name], storages[key])
        assert tensors[name].dtype == storages[key].dtype


def net(key="0"):
    """A network's state dict, told from others by the storage of its numbers."""
    return {"fc.weight": tensor(key), "fc.bias": tensor(key, (3,), (1,))}


TWO = {"0": NUMBERS, "1": NUMBERS + 100}


def test_an_old_file_may_have_a_newer_protocol(tmp_path):
    framed = b"\x80\x04\x95" + (13).to_bytes(8, "little")
    data = legacy_bytes(pickled(net()), {"0": NUMBERS})
    assert data.startswith(b"\x80\x02\x8a")
    (tmp_path / "net.pth").write_bytes(framed + data[2:])
    assert list(load_torch(tmp_path / "net.pth").tensors) == ["fc.weight", "fc.bias"]


@both_formats
@pytest.mark.parametrize(
    "place", ["", "model_state_dict", "state", "net", "teacher", "checkpoint.model", "a.b.c"]
)
@pytest.mark.parametrize("name", ["net.pth.tar", "net.ckpt", "NET.PTH", "net", "net.bin", "n.zip"])
def test_weights_are_found_under_any_name_and_in_any_place(tmp_path, write, place, name):
    momentum = {"state": {0: {"momentum_buffer": tensor()}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = net()
    if place:
        for part in reversed(place.split(".")):
            checkpoint = {part: checkpoint, "optimizer": momentum, "epoch": 3}
    write(tmp_path / name, checkpoint, {"0": NUMBERS})
    tensors, key, others = load_torch(tmp_path / name)
    assert (list(tensors), key, others) == (["fc.weight", "fc.bias"], place, ())


@both_formats
@pytest.mark.parametrize("ema", ["ema", "state_dict_ema", "model_ema", "ema.shadow", "EMA"])
def test_raw_weights_are_read_unless_the_average_is_asked_for(tmp_path, write, ema):
    average = net("1")
    for part in reversed(ema.split(".")[1:]):
        average = {part: average, "decay": 0.9}
    write(tmp_path / "net.pth", {ema.split(".")[0]: average, "model": net()}, TWO)
    raw = load_torch(tmp_path / "net.pth")
    assert raw[1:] == ("model", (ema,)) and raw.tensors["fc.bias"][0] == 0
    for key in (ema, ema.split(".")[0]):
        averaged = load_torch(tmp_path / "net.pth", key)
        assert averaged[1:] == (ema, ()) and averaged.tensors["fc.bias"][0] == 100
    with pytest.raises(ValueError, match=f"no weights under 'emma' .*: (model, )?{ema}"):
        load_torch(tmp_path / "net.pth", "emma")


def test_of_several_networks_one_has_to_be_chosen(tmp_path):
    path = tmp_path / "net.pth"
    write_zip(path, {"student": net(), "teacher": net("1")}, TWO)
    with pytest.raises(
        ValueError, match=r"student \(2 tensors\), teacher .*choose with teacher.we"
    ):
        load_torch(path)
    assert load_torch(path, "teacher").tensors["fc.bias"][0] == 100
    write_zip(path, {"state": {"student.fc.a": tensor(), "teacher.fc.b": tensor("1")}}, TWO)
    for key in ("teacher", "state.teacher"):  # which names may begin with, too
        weights = load_torch(path, key)
        assert (list(weights.tensors), weights.key) == (["fc.b"], "state.teacher")


@both_formats
def test_what_checkpoints_hold_beside_tensors_is_skipped(tmp_path, write):
    checkpoint = {
        "args": Call(Global("argparse", "Namespace"), ()),
        "best": Call(Global("numpy.core.multiarray", "scalar"), (1, "abc")),
        "milestones": Call(Global("collections", "Counter"), ({30: 1, 60: 1},)),
        "state_dict": ordered_dict([["fc.weight", tensor()]]),  # as Python 2 wrote it
    }
    write(tmp_path / "net.pth", checkpoint, {"0": NUMBERS})
    assert list(load_torch(tmp_path / "net.pth").tensors) == ["fc.weight"]


def test_safetensors_are_read_in_every_type(tmp_path):
    tensors = {
        f"fc.{np.dtype(dtype).name}": np.arange(6).reshape(2, 3).astype(dtype)
        for dtype in (np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_)
    }
    safetensors.numpy.save_file(tensors, tmp_path / "net", {"format": "pt"})
    read = load_torch(tmp_path / "net").tensors
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    small = np.array([0.5, -2, 3], jnp.float8_e4m3fn)
    header = {"fc.a": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}
    (tmp_path / "net").write_bytes(safetensors_bytes(header, small.tobytes()))
    np.testing.assert_array_equal(load_torch(tmp_path / "net").tensors["fc.a"], small)


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
    write(tmp_path / "net.pth", {"a.b": tensor("0", shape, strides, offset=offset)}, {"0": NUMBERS})
    with pytest.raises(ValueError, match="reaches beyond its numbers"):
        load_torch(tmp_path / "net.pth")


def test_other_files_are_refused_in_words(tmp_path):
    def refused(content, message, path=tmp_path / "net.pth"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_torch(path)
        assert str(caught.value).startswith(f"cannot read weights from {path}: ")
        assert str(caught.value).isprintable()

    refused(None, "there is no such file")
    refused(None, "it is a folder", tmp_path)
    refused(b"", "it is empty")
    refused(b"weights of a network", "neither torch.save .* begins with 'weights of a net'")
    refused(b"\n <!DOCTYPE html><html>Sign in", "it is a web page and not the weights")
    refused(b"version https://git-lfs.github.com/info/v1\noid sha256:0", "`git lfs pull`")
    refused(pickle.dumps({"a": 1}), "a pickle that was not written by torch.save")
    refused(b"\x1f\x8b" + bytes(100), "packed archive; unpack it")
    with tarfile.open(tmp_path / "net.tar", "w") as archive:
        archive.add(__file__)
    refused(None, "packed archive; unpack it", tmp_path / "net.tar")
    np.savez(tmp_path / "net.npz", a=NUMBERS)
    refused(None, "zip file that torch.save did not write, with a.npy", tmp_path / "net.npz")
    two = {"a.b": tensor(), "c.d": tensor(kind="QInt8Storage")}
    for write in (zip_bytes, legacy_bytes):
        refused(write(pickled({"epoch": 1, "lr": 2}), {}), "no state dict .*only epoch, lr")
        refused(write(pickled(tensor()), {"0": NUMBERS}), "not a state dict")
        refused(write(pickled(net()), {}), "missing")
        refused(write(pickled(two), {"0": NUMBERS}), "type QInt8Storage, which is not read")
        refused(
            write(pickled({"a.b": Global("torch._utils", "_rebuild_qtensor")}), {}), "quantised"
        )
        refused(write(b"\x80\x02" + opcodes(7) + b"o.", {}), "instruction OBJ, which torch.save")
    bomb = zip_bytes(pickled(net()), {"0": np.zeros(2**20)}, compression=8)
    refused(bomb, "its members are compressed")

    def header(kind="F32", shape=(2,), offsets=(0, 8), numbers=8):
        fields = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        return safetensors_bytes({"a.b": fields}, bytes(numbers))

    refused(header("F4"), "type F4, which is not read")
    refused(header(shape=(3,)), "a.b has not as many numbers")
    refused(header(shape=(-1, -2)), "a.b has an impossible shape")
    refused(header(offsets=(8, 16)), r"cut off after \d+ bytes of \d+")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_off_is_named_as_such(tmp_path, kind):
    header = {"a.b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    whole = {
        "zip": zip_bytes(pickled(net()), {"0": NUMBERS}),
        "legacy": legacy_bytes(pickled(net()), {"0": NUMBERS}),
        "safetensors": safetensors_bytes(header, bytes(8)),
    }[kind]
    path = tmp_path / "net.pth"
    path.write_bytes(whole)
    load_torch(path)
    for end in range(1, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"net.pth: it (is cut off|ends too early: it is cut)"):
            load_torch(path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_no_damage_does_more_than_make_a_file_unreadable(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_weights.py")), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", "."]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    told = f"{done.stdout}{done.stderr}"[-5000:]
    assert done.returncode == 0, f"{told}\nended with {done.returncode} at {tmp_path}/weights"
