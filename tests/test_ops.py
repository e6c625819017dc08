import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax.nn import ops


def test_l2_normalize_gives_unit_vectors_along_any_axes():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(ops.l2_normalize(x), axis=-1), 1, rtol=1e-6)
    y = ops.l2_normalize(x, axis=(0, 2))
    np.testing.assert_allclose(np.sqrt(np.square(y).sum(axis=(0, 2))), 1, rtol=1e-6)


def test_zero_vectors_have_zero_norm_and_zero_gradient():
    zero = jnp.zeros((2, 3))
    weight = jnp.arange(6.0).reshape(2, 3)
    for function in (ops.l2_normalize, ops.safe_sqrt):
        value, grad = jax.value_and_grad(lambda x, f=function: jnp.sum(f(x) * weight))(zero)
        assert value == 0
        np.testing.assert_array_equal(grad, 0)


def test_safe_sqrt_is_the_square_root_elsewhere():
    x = jnp.array([1e-20, 1e-6, 4.0, 1e10])
    np.testing.assert_allclose(ops.safe_sqrt(x), np.sqrt(x), rtol=1e-6)


def test_kl_divergence_of_two_coins():
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    np.testing.assert_allclose(ops.kl_divergence(jnp.log(p), jnp.log(q)), expected, rtol=1e-6)
    assert ops.kl_divergence(jnp.log(p), jnp.log(p)) == 0


def test_attention_map_is_the_mean_square_over_channels():
    feat = jnp.full((2, 3, 4, 5), -2.0, jnp.bfloat16).at[0, 1, 2, 3].set(3)
    attention = ops.attention_map(feat)
    assert attention.shape == (2, 3, 4) and attention.dtype == jnp.float32
    assert attention[1, 0, 0] == 4 and attention[0, 1, 2] == (4 * 4 + 9) / 5


def numpy_adaptive_avg_pool(x, size):
    """The rule of PyTorch's AdaptiveAvgPool2d, cell by cell."""
    b, height, width, c = x.shape
    out = np.zeros((b, *size, c))
    for i in range(size[0]):
        top, bottom = math.floor(i * height / size[0]), math.ceil((i + 1) * height / size[0])
        for j in range(size[1]):
            left, right = math.floor(j * width / size[1]), math.ceil((j + 1) * width / size[1])
            out[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


@pytest.mark.parametrize(
    "height, width, size",
    [(32, 32, (8, 8)), (8, 8, (32, 32)), (7, 7, (4, 4)), (4, 4, (7, 7)), (6, 10, (4, 5))],
)
def test_adaptive_avg_pool_is_pytorchs(height, width, size):
    x = np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)
    pooled = jax.jit(ops.adaptive_avg_pool, static_argnums=1)(x, size)
    np.testing.assert_allclose(pooled, numpy_adaptive_avg_pool(x, size), atol=1e-6)


@pytest.mark.parametrize("height, width, size", [(32, 32, (8, 8)), (6, 10, (3, 5)), (4, 8, (4, 2))])
def test_the_pooling_of_accelerators_has_the_values_and_gradients_of_the_cpus(height, width, size):
    x = np.random.default_rng(2).normal(size=(2, height, width, 3)).astype(np.float32)
    weight = np.random.default_rng(3).normal(size=(2, *size, 3)).astype(np.float32)
    (value, grad), (other, of_other) = (
        jax.jit(jax.value_and_grad(lambda x, pool=pool: jnp.sum(weight * pool(x, size))))(x)
        for pool in (ops.block_mean, ops.adaptive_avg_pool)
    )
    np.testing.assert_allclose(value, other, atol=1e-5)
    np.testing.assert_allclose(grad, of_other, atol=1e-6)
    np.testing.assert_allclose(ops.block_mean(x, size), numpy_adaptive_avg_pool(x, size), atol=1e-6)


def test_pool_to_smaller_pools_only_the_larger_map():
    large, small = jnp.ones((2, 8, 6, 3)), jnp.full((2, 4, 6, 5), 2.0)
    a, b = ops.pool_to_smaller(large, small)
    assert a.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(b, small)


def test_torch_uniform_init_fills_its_interval():
    x = ops.torch_uniform_init(25)(jax.random.key(0), (100, 100))
    assert x.dtype == jnp.float32
    assert -0.2 <= x.min() < -0.199 and 0.199 < x.max() <= 0.2
