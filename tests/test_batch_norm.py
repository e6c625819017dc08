"""Batch norm is right in float32 wherever the mean lies, on one device and on several."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from atkd_jax.nn import layers, ops
from atkd_jax.nn.batch_norm import EPSILON, BatchNorm, moments, moments_around

AXES = (0, 1, 2)


def images(ratio, dtype=jnp.float32):
    """[16, 8, 8, 4] of deviation about 1; the channels' means are about `ratio`, one of them 0."""
    mean = ratio * np.array([1.0, -1.1, 0.0, 0.9])
    return np.asarray(np.random.RandomState(0).randn(16, 8, 8, 4) + mean, dtype)


def on_devices(n, function):
    """function(x) whose x and whose first result are split by examples, if n > 1."""
    if n == 1:
        return jax.jit(function)
    mesh = Mesh(np.array(jax.devices()[:n]), ("batch",))
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh, in_specs=P("batch"), out_specs=(P("batch"), P()), check_vma=False
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("ratio, tolerance", [(1, 2e-6), (100, 1e-5), (1000, 1e-3)])
@pytest.mark.parametrize("of", ["network", "method"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_variance_is_that_of_float64(of, dtype, ratio, tolerance, devices):
    axis = "batch" if devices > 1 else None
    if of == "network":
        norm = layers.batch_norm(train=True, dtype=jnp.float32, bn_axis=axis, name="bn")
    else:
        norm = ops.batch_norm(axis, name="bn")
    x = images(ratio, dtype)
    exact = np.asarray(x, np.float64)
    mean, var = exact.mean(AXES), exact.var(AXES)
    variables = norm.init(jax.random.key(0), x)
    for running in (np.zeros(4), mean + 1):  # of a first step and of later ones
        variables["batch_stats"]["mean"] = jnp.asarray(running, jnp.float32)
        y, updated = on_devices(
            devices, lambda x, v=variables: norm.apply(v, x, mutable=["batch_stats"])
        )(x)
        stats = updated["batch_stats"]
        np.testing.assert_allclose((stats["var"] - 0.9) / 0.1, var, tolerance, atol=2e-6)
        np.testing.assert_allclose(stats["mean"], 0.9 * running + 0.1 * mean, 1e-6, atol=1e-6)
        expected = (exact - mean) / np.sqrt(var + EPSILON)
        np.testing.assert_allclose(y, expected, tolerance, atol=3e-7 * max(10, ratio))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("ratio", [1, 1000])
def test_gradient_is_that_of_float64(ratio, devices):
    x = images(ratio)
    w = np.random.RandomState(1).randn(*x.shape).astype("f4")
    norm = BatchNorm(False, axis_name="batch" if devices > 1 else None)
    variables = norm.init(jax.random.key(0), x)

    def gradient(both):
        def loss(x):
            return jnp.sum(both[1] * norm.apply(variables, x, mutable=["batch_stats"])[0])

        return jax.grad(loss)(both[0]), ()

    got, _ = on_devices(devices, gradient)((x, w))
    x, w = np.asarray(x, np.float64), w.astype(np.float64)
    root = np.sqrt(x.var(AXES) + EPSILON)
    y = (x - x.mean(AXES)) / root
    expected = (w - w.mean(AXES) - y * (w * y).mean(AXES)) / root
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_one_pass_around_a_running_mean_is_as_exact():
    """What an accelerator computes, once training has come near the mean."""
    x = images(1000)
    exact = x.astype(np.float64)
    mean, var = moments_around(jnp.asarray(exact.mean(AXES) + 3, jnp.float32), x, AXES, None)
    np.testing.assert_allclose(mean, exact.mean(AXES), 1e-6, atol=1e-5)
    np.testing.assert_allclose(var, exact.var(AXES), 1e-5)


def test_only_a_cpu_looks_at_the_images_twice():
    """On TPU, sums around what is known beforehand are taken while a convolution writes x."""

    def lowered(platform):
        traced = jax.jit(lambda x, running: moments(x, running, AXES, None)).trace(
            images(1), jnp.zeros(4)
        )
        return traced.lower(lowering_platforms=(platform,)).as_text()

    passes = {name: lowered(name).count("stablehlo.reduce(") for name in ("cpu", "cuda", "tpu")}
    assert passes == {"cpu": 3, "cuda": 2, "tpu": 2}


def test_a_constant_channel_becomes_its_bias():
    x = jnp.full((4, 2, 2, 3), 7.0)
    norm = BatchNorm(False)
    variables = norm.init(jax.random.key(0), x)

    def loss(x):
        y, _ = norm.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(y), y

    gradient, y = jax.grad(loss, has_aux=True)(x)
    np.testing.assert_array_equal(y, 0.0)
    assert np.isfinite(gradient).all()


def test_what_is_not_a_number_stays_so():
    x = images(1)
    x[0, 0, 0, 1] = np.nan
    mean, var = moments(x, jnp.zeros(4), AXES, None)
    np.testing.assert_array_equal(np.isnan(mean), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(var), [False, True, False, False])


@pytest.mark.parametrize("axis", [-1, (1, 2)])
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
def test_variables_and_evaluation_are_those_of_flax(axis, dtype):
    rng = np.random.RandomState(0)
    x = jnp.asarray(rng.randn(4, 3, 5), dtype)
    theirs = nn.BatchNorm(True, axis=axis, dtype=dtype)
    ours = BatchNorm(True, axis=axis, dtype=dtype)
    variables = theirs.init(jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(ours.init(jax.random.key(0), x), variables)
    variables = jax.tree.map(lambda v: jnp.asarray(rng.rand(*v.shape), v.dtype), variables)
    y = ours.apply(variables, x)
    assert y.dtype == theirs.apply(variables, x).dtype
    np.testing.assert_array_equal(y, theirs.apply(variables, x))
