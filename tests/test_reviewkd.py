"""ReviewKD against mdistiller's code (a08d46f), and its parts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods
from atkd_jax.methods import Context, Extras
from atkd_jax.methods.reviewkd import hierarchical_context_loss, nearest_resize
from atkd_jax.types import ModelOut

GOLDEN = pathlib.Path(__file__).parent / "golden"
CTX = Context(jax.random.key(0))
RTOL = 1e-5  # of the loss, and of the largest entry of a gradient; measured: 1e-6


def golden_weights(d) -> Extras:
    """The authors' modules, deepest first, under our names."""
    params, state = {}, {}
    for i in range(4):
        theirs, ours = f"w.abfs.{i}", f"level{4 - i}"
        for conv, side in (("conv1", "in"), ("conv2", "out")):
            kernel, norm = f"{theirs}.{conv}.0.weight", f"{theirs}.{conv}.1"
            params[f"{ours}_{side}_conv"] = {"kernel": d[kernel]}
            params[f"{ours}_{side}_bn"] = {"scale": d[f"{norm}.weight"], "bias": d[f"{norm}.bias"]}
            state[f"{ours}_{side}_bn"] = {
                "mean": d[f"{norm}.running_mean"],
                "var": d[f"{norm}.running_var"],
            }
        if i > 0:
            gates = f"{theirs}.att_conv.0"
            params[f"{ours}_gates"] = {
                "kernel": d[f"{gates}.weight"][0, 0],
                "bias": d[f"{gates}.bias"],
            }
    return Extras(params, state)


def golden_outs(d) -> tuple[ModelOut, list]:
    def out(maps):
        stages = {f"stage{i + 1}": x for i, x in enumerate(maps[:3])}
        return ModelOut(jnp.zeros((8, 10)), stages | {"pooled": maps[3][:, 0, 0]})

    return out([d[f"t{i}"] for i in range(4)]), out, [d[f"s{i}"] for i in range(4)]


@pytest.mark.slow
def test_reviewkd_agrees_with_the_authors_code():
    d = dict(np.load(GOLDEN / "reviewkd.npz"))
    method, extras = methods.create("reviewkd"), golden_weights(d)
    t, out, maps = golden_outs(d)
    fresh = method.init(jax.random.key(0), t, out(maps), None)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, extras)

    @jax.jit
    def loss_and_grad(maps):
        return jax.value_and_grad(lambda m: method.loss(extras, t, out(m), None, CTX).loss)(maps)

    loss, grads = loss_and_grad(maps)
    np.testing.assert_allclose(loss, d["loss"], rtol=RTOL)
    for i, grad in enumerate(grads):
        expected = d[f"grad_s{i}"]
        np.testing.assert_allclose(grad, expected, rtol=0, atol=RTOL * np.abs(expected).max())


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "size, scales, divisor",
    [(8, (8, 4, 2, 1), 1.875), (4, (4, 2, 1), 1.75), (2, (2, 1), 1.5), (1, (1,), 1.0)],
)
def test_scales_smaller_than_the_map_count_half_each(size, scales, divisor):
    diff = noise(0, 2, size, size, 3)
    expected = 0
    for i, n in enumerate(scales):
        pooled = diff.reshape(2, n, size // n, n, size // n, 3).mean(axis=(2, 4))
        expected += np.square(pooled).mean() / 2**i / divisor
    b = noise(1, 2, size, size, 3)
    np.testing.assert_allclose(hierarchical_context_loss(b + diff, b), expected, rtol=1e-5)
    assert hierarchical_context_loss(b, b) == 0


def test_a_constant_difference_costs_its_square_on_every_scale():
    for size in (7, 5, 3):
        a = jnp.full((1, size, size, 2), 3.0)
        np.testing.assert_allclose(hierarchical_context_loss(a, 0 * a), 9, rtol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (8, 2), (1, 1), (7, 3)])
def test_nearest_resize_takes_the_pixel_at_or_before(size):
    x = noise(2, 2, 4, 4, 3)
    rows, cols = (np.floor(np.arange(n) * (4 / n)).astype(int) for n in size)
    np.testing.assert_array_equal(nearest_resize(x, size), x[:, rows][:, :, cols])


def outs(seed, with_pre=True) -> ModelOut:
    feats = {"pooled": noise(seed, 2, 6)}
    for i, shape in enumerate([(4, 4, 3), (2, 2, 6)], 1):
        feats[f"stage{i}"] = noise(seed + i, 2, *shape)
        if with_pre:
            feats[f"stage{i}_pre"] = noise(seed + i + 10, 2, *shape)
    return ModelOut(jnp.zeros((2, 10)), feats)


def test_the_teacher_is_taken_before_its_activation_and_the_student_if_asked():
    t, s = outs(0), outs(100)
    for student_pre, tap in ((False, "stage2"), (True, "stage2_pre")):
        method = methods.create("reviewkd", student_pre=student_pre)
        targets, x = method._levels(t, s)
        np.testing.assert_array_equal(targets[1], t.feats["stage2_pre"])
        np.testing.assert_array_equal(x[1], s.feats[tap])
        assert [y.shape[1:] for y in x] == [(4, 4, 3), (2, 2, 6), (1, 1, 6)]
    linear = outs(0, with_pre=False)  # no activation, no twin
    np.testing.assert_array_equal(method._levels(linear, s)[0][1], linear.feats["stage2"])


def test_what_is_passed_up_is_as_wide_as_the_students_last_level_and_no_wider():
    t, s = outs(0), outs(100)
    for fields, mid in (({}, 6), ({"max_mid_channels": 4}, 4)):
        init = methods.create("reviewkd", **fields).init
        params = jax.eval_shape(lambda init=init: init(jax.random.key(0), t, s, None)).params
        assert params["level1_in_conv"]["kernel"].shape == (1, 1, 3, mid)
        assert params["level1_out_conv"]["kernel"].shape == (3, 3, mid, 3)


def test_reviewkd_names_what_is_missing():
    t, s = outs(0), outs(100)
    del s.feats["pooled"]
    with pytest.raises(ValueError, match="reviewkd: the student has no tap pooled"):
        methods.create("reviewkd").init(jax.random.key(0), t, s, None)
