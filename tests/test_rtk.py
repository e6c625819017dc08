"""What RTK adds to AFD: representative keys, and students' maps resampled by SoftPool."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import EXTRAS, KEY, METHOD, S, T, attention, loss_and_grad, loss_of, noise

from atkd_jax import methods
from atkd_jax.methods import Extras
from atkd_jax.methods.rtk import soft_pool

pool = jax.jit(soft_pool, static_argnums=(1, 2))


@functools.cache
def plain():
    return loss_and_grad(METHOD, EXTRAS, T, S)


@pytest.mark.slow
def test_rtk_that_selects_all_and_pools_averages_is_afd():
    rtk = methods.create("rtk", dim=8, threshold="fixed", threshold_factor=0.0, resample="average")
    afd = methods.create("afd", dim=8)
    ours, grads = loss_and_grad(rtk, EXTRAS, T, S)
    afds = Extras(EXTRAS.params, EXTRAS.state["batch_stats"])
    expected, expected_grads = loss_and_grad(afd, afds, T, S)
    np.testing.assert_array_equal(ours.loss, expected.loss)

    def nearly_equal(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)

    jax.tree.map(nearly_equal, grads, expected_grads)


ATTENTION = jnp.array(
    [
        [0.70, 0.10, 0.10, 0.05, 0.03, 0.02],
        [0.20, 0.20, 0.20, 0.20, 0.10, 0.10],
        [0.40, 0.40, 0.05, 0.05, 0.05, 0.05],
        [1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6],
    ]
)  # k = 2: scores 0.4, 0.2, 0.4, 0.167, their mean 0.292


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, [1, 0, 1, 0]),
        ({"top_k": 1}, [1, 0, 1, 0]),  # 0.7, 0.2, 0.4, 0.167
        ({"top_k": 6}, [1, 1, 1, 1]),  # all 1/6
        ({"threshold": "fixed"}, [1, 1, 1, 0]),  # 1.2 / 6
        ({"threshold": "fixed", "threshold_factor": 2.0}, [1, 0, 1, 0]),
        ({"threshold": "fixed", "threshold_factor": 5.0}, [1, 0, 1, 0]),  # the best, always
        ({"threshold": "fixed", "threshold_factor": 0.0}, [1, 1, 1, 1]),
        ({"threshold": "ratio"}, [1, 0, 1, 0]),
        ({"threshold": "ratio", "top_k": 1, "keep_ratio": 0.25}, [1, 0, 0, 0]),
        ({"threshold": "ratio", "keep_ratio": 0.01, "top_k": 1}, [1, 0, 0, 0]),
        ({"threshold": "ratio", "keep_ratio": 0.75}, [1, 1, 1, 0]),
    ],
)
def test_keys_whose_attention_is_concentrated_are_representative(fields, expected):
    rtk = methods.create("rtk", **fields)
    np.testing.assert_array_equal(rtk.representative(ATTENTION), expected)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["mean", "fixed", "ratio"])
def test_some_key_is_always_representative(threshold):
    rtk = methods.create("rtk", threshold=threshold, threshold_factor=100.0, keep_ratio=0.01)
    nearly_uniform = jax.nn.softmax(0.01 * jax.random.normal(KEY, (50, 27, 9)))
    assert np.all(jax.vmap(rtk.representative)(nearly_uniform).sum(axis=1) >= 1)
    assert rtk.representative(jnp.full((27, 9), 1 / 9)).sum() == 27


@pytest.mark.slow
@pytest.mark.parametrize("resample", ["softpool", "softpool_map"])
def test_students_maps_are_resampled_before_or_after_the_mean_over_channels(resample):
    def unit(m):
        return np.asarray(m).reshape(4, -1) / np.linalg.norm(m, axis=(1, 2))[:, None]

    def resampled(x, size):
        if resample == "softpool":
            return np.square(pool(x, size)).mean(axis=3)
        return pool(np.square(x).mean(axis=3, keepdims=True), size)[..., 0]

    t, s = list(T.feats.values()), list(S.feats.values())
    a = attention()
    r, expected = METHOD.representative(a.mean(axis=0)), 0
    for i, x in enumerate(t):
        v_t = unit(np.square(x).mean(axis=3))
        for j, y in enumerate(s):
            v_s = unit(resampled(y, x.shape[1:3]))
            expected += r[i] * (a[:, i, j] * np.square(v_s - v_t).mean(axis=1)).mean()
    students = []
    for exact in (False, True):
        rtk = methods.create("rtk", dim=8, resample=resample, softpool_exact_gradient=exact)
        out, (_, student) = loss_and_grad(rtk, EXTRAS, T, S)
        np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
        students.append(student.feats["block1"])
    assert np.abs(students[0] - students[1]).max() > 1e-2 * np.abs(students[0]).max()


@pytest.mark.slow
def test_queries_pass_a_relu_if_asked():
    """Batch norms that make every query -1: after a ReLU only the positions are left."""
    below_zero = {"scale": jnp.zeros((3, 8)), "bias": -jnp.ones((3, 8))}
    params = EXTRAS.params | {"query_bn": below_zero}
    positions = params["teacher_positions"] @ params["student_positions"].T / 8**0.5
    expected = jax.nn.softmax(positions).T
    for query_relu in (True, False):
        rtk = methods.create("rtk", dim=8, query_relu=query_relu)
        out = loss_of(rtk)(Extras(params, EXTRAS.state))
        same = np.allclose(out.metrics["attention"], expected, rtol=1e-5)
        assert same == query_relu


@pytest.mark.slow
def test_a_single_student_block_gets_all_attention():
    t, s = noise(0, (4, 4, 4), (4, 4, 4)), noise(2, (4, 4, 5))
    extras = METHOD.init(KEY, t, s, None)
    out = loss_of(METHOD, t, s)(extras)
    np.testing.assert_array_equal(out.metrics["attention"], np.ones((1, 2)))
    assert out.metrics["representative_keys"] == 2


def test_keys_that_are_not_selected_get_no_gradient():
    out, (params, student) = plain()
    r = METHOD.representative(out.metrics["attention"].T)
    assert 0 < r.sum() < 3
    for i, selected in enumerate(r):
        assert np.any(params[f"query{i + 1}"]["kernel"] != 0) == selected
        assert np.any(params["teacher_positions"][i] != 0) == selected
    assert all(np.any(x != 0) for x in student.feats.values())


def test_rescaled_loss_is_as_large_as_if_all_keys_were_selected():
    rescaled = loss_of(methods.create("rtk", dim=8, rescale=True))(EXTRAS)
    out, _ = plain()
    expected = out.loss * 3 / out.metrics["representative_keys"]
    np.testing.assert_allclose(rescaled.loss, expected, rtol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_all_keys_are_used_until_the_warmup_is_over(micro_batches):
    loss, extras, used = loss_of(methods.create("rtk", dim=8, select_warmup=4)), EXTRAS, []
    for step in range(6):
        for _ in range(micro_batches):
            out = loss(extras, step)
            extras = Extras(EXTRAS.params, out.state)
            used.append(float(out.metrics["representative_keys"]))
    warm = 4 * micro_batches
    assert set(used[:warm]) == {3} and max(used[warm:]) < 3


@pytest.mark.parametrize("select_on", ["mean", "per_sample"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_what_keys_are_selected_on_is_averaged_over_steps(select_on, micro_batches):
    """However many micro-batches a step has: their mean counts once."""
    rtk = methods.create("rtk", dim=8, ema=0.9, select_on=select_on)
    students = [noise(i, *(x.shape[1:] for x in S.feats.values())) for i in range(micro_batches)]
    losses = [loss_of(rtk, s=s) for s in students]
    maps = [attention(s=s) for s in students]
    if select_on == "per_sample":
        maps = [-np.sort(-a, axis=2) for a in maps]
    expected = np.mean([a.mean(axis=0) for a in maps], axis=0)
    extras = EXTRAS
    for step in range(3):
        # The average that starts from zero lacks 0.9^n.
        before = extras.state["attention"]
        for loss in losses:
            extras = Extras(EXTRAS.params, loss(extras, step).state)
        now = extras.state["step_attention"]
        assert (now.period, now.count) == (step, micro_batches)
        np.testing.assert_allclose(now.mean, expected, rtol=1e-5)
        past = (1 - 0.9**step) * expected
        np.testing.assert_allclose(extras.state["attention"], past, rtol=1e-5)
        assert np.array_equal(before, extras.state["attention"]) == (step == 0)


def test_keys_are_selected_on_the_average():
    """Of long ago, here; a first step, whose average is a tenth, selects as if there were none."""
    sharp = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])  # for one teacher block of three
    fields = {"dim": 8, "threshold": "fixed", "threshold_factor": 1.12, "top_k": 1}
    loss, rtk = loss_of(methods.create("rtk", ema=0.9, **fields)), methods.create("rtk", **fields)
    selected = []
    for step, before in ((1000, sharp), (0, EXTRAS.state["attention"])):
        out = loss(Extras(EXTRAS.params, EXTRAS.state | {"attention": before}), step)
        average = 0.9 * before + 0.1 * out.state["step_attention"].mean
        average /= 1 - 0.9 ** (step + 1)
        assert out.metrics["representative_keys"] == rtk.representative(average).sum()
        selected.append(int(out.metrics["representative_keys"]))
    assert selected[0] != selected[1], selected


def test_rtk_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="unknown RTK.threshold 'men'; did you mean 'mean'"):
        methods.create("rtk", threshold="men")
    with pytest.raises(ValueError, match="rtk: top_k must be in 0..2"):
        methods.create("rtk", top_k=3).init(KEY, T, S, None)
    with pytest.raises(ValueError, match=re.escape("RTK.ema 1 is not a number in [0, 1)")):
        methods.create("rtk", ema=1)


# SoftPool: between the mean and the maximum of every region, stable, with either gradient


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
