"""The layers compute what PyTorch's compute, on every platform and on every number of devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atkd_jax.nn import layers


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_stride_2_convolution_pads_both_sides_alike():
    x, kernel = np.asarray(normal(0, 2, 6, 6, 3)), np.asarray(normal(1, 3, 3, 3, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 3, 3, 4))
    for i in range(3):
        for j in range(3):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, i, j] = np.einsum("bhwc,hwck->bk", window, kernel)
    module = layers.conv(4, 3, 2, dtype=jnp.float32, name="conv")
    np.testing.assert_allclose(module.apply({"params": {"kernel": kernel}}, x), expected, atol=1e-5)


def test_max_pool_is_that_of_the_image_padded_with_minus_infinity():
    x = np.maximum(np.asarray(normal(0, 1, 6, 7, 2)), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.stack(
        [
            np.stack([padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in (0, 2, 4, 6)], 1)
            for i in (0, 2, 4)
        ],
        1,
    )
    np.testing.assert_array_equal(layers.max_pool(x), expected)


def test_batch_norm_uses_the_global_batch_over_a_device_axis():
    x = normal(0, 8, 4, 4, 3)

    def norm(axis):
        return layers.batch_norm(train=True, dtype=jnp.float32, bn_axis=axis, name="bn")

    variables = norm(None).init(jax.random.key(0), x)
    whole, stats = norm(None).apply(variables, x, mutable=["batch_stats"])
    split, split_stats = jax.vmap(
        lambda x: norm("batch").apply(variables, x, mutable=["batch_stats"]), axis_name="batch"
    )(x.reshape(2, 4, 4, 4, 3))
    np.testing.assert_allclose(split.reshape(x.shape), whole, atol=1e-5)
    for replica in (0, 1):
        of_replica = jax.tree.map(lambda x, i=replica: x[i], split_stats)
        chex.assert_trees_all_close(of_replica, stats, atol=1e-6, rtol=1e-7)
    np.testing.assert_allclose(
        stats["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), atol=1e-6
    )  # PyTorch's momentum 0.1


def test_dropout_does_not_depend_on_how_the_batch_is_split():
    x, rng = jnp.ones((8, 1000)), jax.random.split(jax.random.key(0), 8)
    whole = layers.dropout(x, rng, 0.2)
    np.testing.assert_array_equal(whole[4:], layers.dropout(x[4:], rng[4:], 0.2))
    np.testing.assert_allclose(np.unique(whole), [0, 1.25])
    assert abs(float(jnp.mean(whole == 0)) - 0.2) < 0.02
    assert not np.array_equal(whole[0], whole[1])


def test_initial_values_are_those_of_the_pytorch_networks():
    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.linear(x, 400, name="fc")

    x = jnp.zeros((1, 4, 4, 32))
    conv = layers.conv(64, 3, dtype=jnp.float32, name="conv").init(jax.random.key(0), x)
    kernel = conv["params"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert float(jnp.abs(kernel).max()) > 3 * float(kernel.std())  # not truncated
    flax = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    for shape in ((3, 3, 8, 64), (1, 1, 16, 4)):
        drawn = (draw(jax.random.key(3), shape, jnp.float32) for draw in (layers.conv_init, flax))
        np.testing.assert_array_equal(*drawn)
    fc = Head().init(jax.random.key(0), jnp.zeros((1, 64)))["params"]["fc"]
    for value in fc.values():
        assert 0.12 < float(jnp.abs(value).max()) <= 0.125  # 1 / sqrt(64)
        assert float(value.std()) == pytest.approx(0.125 / 3**0.5, rel=0.1)
