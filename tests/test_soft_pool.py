"""SoftPool: between the mean and the maximum of every region, stable, with either gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax.methods.rtk import soft_pool

pool = jax.jit(soft_pool, static_argnums=(1, 2))


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (3, 5), (7, 16), (16, 16)])
def test_soft_pool_lies_between_the_mean_and_the_maximum_of_its_region(size):
    x = np.random.default_rng(3).normal(size=(2, 8, 8, 3)).astype(np.float32)
    pooled = np.asarray(pool(x, size))
    assert pooled.shape == (2, *size, 3)
    for i in range(size[0]):
        for j in range(size[1]):
            rows, cols = (
                slice(k * 8 // n, -(-(k + 1) * 8 // n)) for k, n in zip((i, j), size, strict=True)
            )
            region = x[:, rows, cols].reshape(2, -1, 3)
            w = np.exp(region) / np.exp(region).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(pooled[:, i, j], (w * region).sum(axis=1), rtol=1e-4)
            assert np.all(pooled[:, i, j] <= region.max(axis=1) + 1e-6)
            assert np.all(pooled[:, i, j] >= region.mean(axis=1) - 1e-6)


def test_soft_pool_of_one_pixel_regions_is_the_nearest_neighbour():
    x = np.random.default_rng(4).normal(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(pool(x, (4, 4)), x)
    np.testing.assert_array_equal(pool(x, (8, 16)), x.repeat(2, axis=1).repeat(4, axis=2))


def test_soft_pool_of_a_constant_is_that_constant_even_if_it_is_large():
    x = jnp.full((1, 6, 6, 2), 1e3)
    for size in ((2, 2), (4, 5)):
        np.testing.assert_allclose(pool(x, size), 1e3, rtol=1e-6)
    one_large = x.at[0, 0, 0].set(-1e3)
    grad = jax.grad(lambda x: pool(x, (2, 2), True).sum())(one_large)
    assert np.all(np.isfinite(grad))


def test_gradient_of_soft_pool_is_its_weights_or_exact():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 2, 2, 1)), jnp.float32)
    w = jax.nn.softmax(x.reshape(-1)).reshape(x.shape)
    pooled = pool(x, (1, 1))
    for exact, expected in ((False, w), (True, w * (1 + x - pooled))):
        grad = jax.grad(lambda x, exact=exact: pool(x, (1, 1), exact).sum())(x)
        np.testing.assert_allclose(grad, expected, rtol=1e-5)
