"""Published weights are read without PyTorch and without running what a file says."""

import pickle
import sys
import types
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from atkd_jax import models
from atkd_jax.models import convert
from atkd_jax.models.torch_file import LEGACY_MAGIC

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
    tensors = convert.load_torch(tmp_path / "net.pth")
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
        convert.load_torch(tmp_path / "net.pth")
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
        convert.load_torch(tmp_path / "net.pth")


def test_other_files_are_refused_in_words(tmp_path):
    def refused(name, message):
        with pytest.raises(ValueError, match=message):
            convert.load_torch(tmp_path / name)

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


def shapes(name, classes=10):
    image = jnp.zeros((2, 32, 32, 3))
    return jax.eval_shape(models.create(name, classes).init, jax.random.key(0), image)


def akamaster(channels=16):
    """The tensors of ResNet-8 with option A as pytorch_resnet_cifar10 saves them."""
    rng = np.random.default_rng(0)
    tensors = {}

    def conv_and_norm(path, number, inputs, outputs):
        tensors[f"{path}conv{number}.weight"] = rng.normal(size=(outputs, inputs, 3, 3))
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{path}bn{number}.{leaf}"] = rng.normal(size=outputs)

    conv_and_norm("module.", 1, 3, channels)
    width = channels
    for stage in (1, 2, 3):
        outputs = channels * 2 ** (stage - 1)
        conv_and_norm(f"module.layer{stage}.0.", 1, width, outputs)
        conv_and_norm(f"module.layer{stage}.0.", 2, outputs, outputs)
        width = outputs
    tensors["module.linear.weight"] = rng.normal(size=(10, width))
    tensors["module.linear.bias"] = rng.normal(size=10)
    return tensors


def test_every_tensor_lands_where_it_belongs(tmp_path):
    tensors = {k: v.astype(np.float32) for k, v in akamaster().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "resnet8.safetensors")
    loaded = convert.load_torch(tmp_path / "resnet8.safetensors")
    variables = convert.to_flax("resnet8a", loaded, shapes("resnet8a"))
    assert jax.tree.structure(variables) == jax.tree.structure(shapes("resnet8a"))
    params, stats = variables["params"], variables["batch_stats"]
    conv = params["stage2_block1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        conv, tensors["module.layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    )
    assert conv.shape == (3, 3, 16, 32) and conv.dtype == np.float32
    np.testing.assert_array_equal(params["fc"]["kernel"], tensors["module.linear.weight"].T)
    np.testing.assert_array_equal(params["stem_bn"]["scale"], tensors["module.bn1.weight"])
    np.testing.assert_array_equal(
        stats["stage3_block1"]["bn2"]["var"], tensors["module.layer3.0.bn2.running_var"]
    )


def test_weights_that_do_not_fit_are_refused_in_words():
    def refused(name, tensors, message, classes=10):
        with pytest.raises(ValueError, match=message):
            convert.to_flax(name, tensors, shapes(name, classes))

    tensors = akamaster()
    refused("resnet8a", tensors, "the weights have 10 classes, the data set has 100", classes=100)
    refused("resnet8", tensors, r"lack layer2\.0\.downsample\.0\.weight.*it is a resnet8a")
    refused("resnet14a", tensors, r"lack layer1\.1\.bn1\.bias, .* and \d+ more")
    refused("resnet8a", tensors | {"extra.weight": np.zeros(3)}, "also hold extra.weight")
    refused("resnet8a", akamaster(channels=8), r"has shape \(8,\).* \(16,\) was expected")
    refused("mobilenetv1", tensors, "no published PyTorch weights are known")


def randomise(module, torch):
    """Gives batch norms statistics, so that the test sees where they go."""
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.2)
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "theirs"),
    [("resnet18", "resnet18"), ("resnet50", "resnet50"), ("mobilenetv2", "mobilenet_v2")],
)
def test_torchvision_networks_give_the_same_logits(tmp_path, monkeypatch, name, theirs, zipped):
    torch = pytest.importorskip("torch")
    # A CUDA build of torchvision beside a CPU build of torch fails in this module, and only there.
    module = types.ModuleType("torchvision._meta_registrations")
    monkeypatch.setitem(sys.modules, "torchvision._meta_registrations", module)
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = getattr(torchvision.models, theirs)(weights=None).eval()
    randomise(net, torch)
    net_file = tmp_path / "net.pth"
    torch.save(net.state_dict(), net_file, _use_new_zipfile_serialization=zipped)
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = net(image).numpy()
    ours = models.create(name, 1000)
    variables = convert.to_flax(name, convert.load_torch(net_file), shapes(name, 1000))
    out = jax.jit(ours.apply)(variables, image.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(out.logits / expected.std(), expected / expected.std(), atol=1e-4)
