"""Parameters and multiply-accumulates are counted as papers count them."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from atkd_jax import models
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.nn import layers


def test_macs_of_resnet20_are_those_of_the_formula():
    stem = 32 * 32 * 9 * 3 * 16
    stage1 = 6 * 32 * 32 * 9 * 16 * 16
    stage2 = 16 * 16 * (9 * 16 * 32 + 5 * 9 * 32 * 32)
    stage3 = 8 * 8 * (9 * 32 * 64 + 5 * 9 * 64 * 64)
    shortcuts = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    macs = stem + stage1 + stage2 + stage3 + 64 * 10
    assert count_macs(models.create("resnet20a", 10), (32, 32, 3)) == macs
    assert count_macs(models.create("resnet20", 10), (32, 32, 3)) == macs + shortcuts


@pytest.mark.parametrize(
    ("name", "billions"),  # torchvision's documentation; MobileNetV1's paper
    [("resnet18", 1.814), ("resnet50", 4.089), ("mobilenetv2", 0.301), ("mobilenetv1", 0.569)],
)
def test_macs_are_the_published_ones(name, billions):
    macs = count_macs(models.create(name, 1000), (224, 224, 3))
    assert macs == pytest.approx(billions * 1e9, abs=0.5e6)


def test_depthwise_convolution_counts_once_and_by_channel():
    module = layers.DepthwiseConv(2)
    assert count_macs(module, (8, 8, 3)) == 4 * 4 * 9 * 3


def test_a_loop_counts_every_turn():
    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.zeros, (3, 3))
            return jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=5)[0]

    assert count_macs(Loop(), (4, 2, 3)) == 5 * 4 * 2 * 3 * 3


def test_batch_statistics_are_no_parameters():
    variables = {"params": {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}, "batch_stats": jnp.ones(9)}
    assert count_params(variables) == count_params(variables["params"]) == 7
