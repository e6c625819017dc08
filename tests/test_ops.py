import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax.nn import ops
from atkd_jax.types import ModelOut


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


def test_pool_to_smaller_pools_only_the_larger_map():
    large, small = jnp.ones((2, 8, 6, 3)), jnp.full((2, 4, 6, 5), 2.0)
    a, b = ops.pool_to_smaller(large, small)
    assert a.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(b, small)


def outputs(*taps, classes=10):
    return ModelOut(
        jax.ShapeDtypeStruct((2, classes), jnp.float32),
        {tap: jax.ShapeDtypeStruct((2, 4, 4, len(tap)), jnp.float32) for tap in taps},
    )


def test_taps_are_the_common_stages_from_the_front():
    t = outputs("stem", "stage1", "stage2", "stage2_pre", "stage3", "block1", "pooled")
    s = outputs("stem", "stage1", "stage2", "pooled")
    assert ops.stage_names(t.feats) == ("stage1", "stage2", "stage3")
    pairs = ops.tap_pairs("at", t, s)
    assert pairs == [(t.feats[tap], s.feats[tap]) for tap in ("stage1", "stage2")]
    assert ops.last_stages("sp", t, s) == (t.feats["stage3"], s.feats["stage2"])


def test_a_missing_tap_is_named_with_those_there_are():
    t, s = outputs("stage1", "stage2", "block1"), outputs("stage1", "block1")
    with pytest.raises(ValueError, match="^at: the student has no tap stage2; it has stage1$"):
        ops.tap_pairs("at", t, s, ("stage1", "stage2"))
    with pytest.raises(ValueError, match="at: there is no stage to compare"):
        ops.tap_pairs("at", t, outputs("pooled"))
    with pytest.raises(ValueError, match="sp: the teacher has no stages; it has no taps"):
        ops.last_stages("sp", outputs(), s)


def test_a_method_that_compares_positions_takes_maps_only():
    """And recommends no feature that it would refuse."""
    t, s = outputs("stem", "stage1", "pooled"), outputs("stem", "stage1", "pooled")
    for out in (t, s):
        out.feats["pooled"] = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    assert len(ops.map_pairs("at", t, s, ("stem", "stage1"))) == 2
    with pytest.raises(
        ValueError, match="^at: pooled is no map of features, .* take one of stem, stage1$"
    ):
        ops.map_pairs("at", t, s, ("pooled",))
    with pytest.raises(
        ValueError, match="^at: the teacher has no tap stage3; it has stem, stage1$"
    ):
        ops.map_pairs("at", t, s, ("stage3",))
    assert ops.tap_pairs("cc", t, s, ("pooled",))[0][0].ndim == 2


def test_networks_with_different_classes_are_refused():
    with pytest.raises(ValueError, match="kd: the teacher has 100 classes, the student 10"):
        ops.check_classes("kd", outputs(classes=100), outputs(classes=10))


def test_torch_uniform_init_fills_its_interval():
    x = ops.torch_uniform_init(25)(jax.random.key(0), (100, 100))
    assert x.dtype == jnp.float32
    assert -0.2 <= x.min() < -0.199 and 0.199 < x.max() <= 0.2
