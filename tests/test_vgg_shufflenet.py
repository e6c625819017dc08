"""VGG and the ShuffleNets are those of the benchmark, and their convolutions are PyTorch's."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import models
from atkd_jax.models import convert, shufflenet

GOLDEN = Path(__file__).parent / "golden"


def draw(shapes):
    """A state dict of these shapes: the networks are too large to keep their weights here."""
    rng = np.random.RandomState(0)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            tensors[name] = rng.uniform(0.5, 1.5, shape)
        else:
            scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
            tensors[name] = scale * rng.standard_normal(shape)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg13", "shufflenetv1", "shufflenetv2"])
def test_networks_agree_with_the_benchmark(name):
    """Logits, and means over H and W of features, of RepDistiller's networks in PyTorch."""
    golden = np.load(GOLDEN / f"net_{name}.npz")
    image = np.random.RandomState(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    module = models.create(name, 10)
    template = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = convert.to_flax(name, draw(json.loads(str(golden["shapes"]))), template)
    logits, feats = jax.jit(module.apply)(variables, image)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    stages = [x for x in feats if x.startswith("stage") and not x.endswith("_pre")]
    taps = ["stem", *sorted(stages)]
    assert sum(x.startswith("feat") for x in golden) == len(taps) + 1
    np.testing.assert_allclose(feats["pooled"], golden[f"feat{len(taps)}"], atol=1e-5)
    for i, tap in enumerate(taps):
        mean = feats[tap].mean((1, 2))
        np.testing.assert_allclose(mean, golden[f"feat{i}"], atol=1e-5, err_msg=tap)
    for i, stage in enumerate(taps[1:], 1):
        pre = golden[f"pre{i}"]
        if name == "shufflenetv2":  # whose own are not shuffled
            pre = shufflenet.shuffle(pre, 2)
        np.testing.assert_allclose(feats[f"{stage}_pre"].mean((1, 2)), pre, atol=1e-5)
        np.testing.assert_array_equal(feats[stage], np.maximum(feats[f"{stage}_pre"], 0))


def test_vgg_pools_once_more_for_larger_images():
    module = models.create("vgg8", 10)
    image = jnp.zeros((1, 64, 64, 3))
    feats = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image)[0].feats)
    sizes = [feats[x].shape[1] for x in ("stem", "stage1", "stage2", "stage3", "stage4")]
    assert sizes == [64, 32, 16, 8, 4]


def test_channels_are_dealt_out():
    np.testing.assert_array_equal(shufflenet.shuffle(jnp.arange(6), 3), [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(shufflenet.shuffle(jnp.arange(6), 2), [0, 3, 1, 4, 2, 5])


@pytest.mark.parametrize("groups", [1, 3])
def test_gradient_of_a_grouped_convolution_is_that_of_the_sums(groups):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 3, 4, 6)), rng.standard_normal((2, 3, 4, 9))
    kernel = rng.standard_normal((1, 1, 6 // groups, 9))
    blocks = np.kron(np.eye(groups), np.ones((6 // groups, 9 // groups)))  # who sees whom
    full = blocks * np.tile(kernel[0, 0], (groups, 1))

    @jax.jit
    def value_and_gradients(x, kernel, g):
        y, pull = jax.vjp(shufflenet.pointwise, x, kernel)
        return y, *pull(g)

    y, d_x, d_kernel = value_and_gradients(*(a.astype(np.float32) for a in (x, kernel, g)))
    np.testing.assert_allclose(y, x @ full, atol=1e-5)
    np.testing.assert_allclose(d_x, g @ full.T, atol=1e-5)
    d_full = blocks * np.einsum("bhwc,bhwd->cd", x, g)
    expected = d_full.reshape(groups, 6 // groups, 9).sum(0)
    np.testing.assert_allclose(d_kernel[0, 0], expected, atol=1e-5)


def test_shufflenets_convolutions_start_as_pytorchs():
    x = jnp.zeros((1, 4, 4, 48))
    pointwise = shufflenet.PointwiseConv(96, groups=3)
    depthwise = shufflenet.DepthwiseConv(1, models.layers.depthwise)
    for module, inputs in ((pointwise, 16), (depthwise, 9)):
        kernel = jax.jit(module.init)(jax.random.key(0), x)["params"]["kernel"]
        bound = inputs**-0.5
        assert 0.95 * bound < float(jnp.abs(kernel).max()) <= bound
        assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
