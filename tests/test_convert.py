"""Published PyTorch weights land where they belong, or are refused in words."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from atkd_jax import models
from atkd_jax.models import convert


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
    loaded = convert.load_torch(tmp_path / "resnet8.safetensors").tensors
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


PREFIXES = ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "architecture.", "a.b."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("middle", ["", "module.", "_orig_mod."])
def test_what_wraps_a_network_is_no_part_of_its_names(prefix, middle):
    bare = {k.removeprefix("module."): v for k, v in akamaster().items()}
    counter = {f"{prefix}bn1.num_batches_tracked": np.array(3), "n_averaged": np.array(7)}
    wrapped = {prefix + k.replace("layer2.", f"layer2.{middle}"): v for k, v in bare.items()}
    expected = convert.to_flax("resnet8a", bare, shapes("resnet8a"))
    variables = convert.to_flax("resnet8a", wrapped | counter, shapes("resnet8a"))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


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
    beside = {f"model.{k}": v for k, v in tensors.items()} | {"head.fc.weight": np.zeros((2, 2))}
    refused(
        "resnet8a", beside, r"all of them are under model\.module: choose with teacher.weights_k"
    )
    average = beside | {f"ema.{k}": v for k, v in tensors.items()}
    refused("resnet8a", average, r"under ema\.module and model\.module: choose")
    refused("resnet8a", {"a.b": np.zeros(3)}, r"lack bn1\.bias, .* and \d+ more; they hold a\.b")
    refused("resnet8a", {}, r"lack bn1\.bias, .* and \d+ more$")
    twice = tensors | {"bn1.bias": np.zeros(16)}
    refused("resnet8a", twice, r"hold bn1\.bias twice, wrapped and not")
    whole = tensors | {"module.bn1.bias": np.zeros(16, np.int8)}
    refused("resnet8a", whole, r"bn1\.bias holds int8 numbers, not floating point")
    for shape in ((), (10,), (10, 64, 1), (10, 64, 1, 1)):
        other = tensors | {"module.linear.weight": np.zeros(shape)}
        refused("resnet8a", other, r"linear\.weight has shape .*\(64, 10\) was expected")
    refused("resnet8a", tensors | {"a\nb.c": np.zeros(3)}, r"also hold 'a\\nb\.c'")
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
    variables = convert.to_flax(name, convert.load_torch(net_file).tensors, shapes(name, 1000))
    out = jax.jit(ours.apply)(variables, image.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(out.logits / expected.std(), expected / expected.std(), atol=1e-4)
