"""AFD against its authors' code (attention-feature-distillation dd990d0), and what RTK adds."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods, models
from atkd_jax.methods import Extras
from atkd_jax.methods.afd import Attention, attend
from atkd_jax.methods.rtk import soft_pool
from atkd_jax.types import ModelOut

GOLDEN = pathlib.Path(__file__).parent / "golden"
RTOL = 1e-5  # of the loss, and of the largest entry of a gradient; measured: 1e-6
KEY = jax.random.key(0)
LOGITS = np.zeros((4, 10), np.float32)


def blocks(maps) -> ModelOut:
    feats = {f"block{i + 1}": x for i, x in enumerate(maps)}
    return ModelOut(jnp.zeros((len(maps[0]), 10)), feats)


def noise(seed, *shapes, b=4) -> ModelOut:
    """Four examples of blocks with the given (H, W, C)."""
    rng = np.random.default_rng(seed)
    maps = [np.maximum(rng.normal(size=(b, *shape)), 0) for shape in shapes]
    return blocks([jnp.asarray(x, jnp.float32) for x in maps])


T = noise(0, (8, 8, 4), (4, 4, 8), (2, 2, 8))
S = noise(1, (8, 8, 3), (4, 4, 5))
METHOD = methods.create("rtk", dim=8)
EXTRAS = METHOD.init(KEY, T, S, None)


def loss_and_grad(method, extras, t, s):
    """(LossOut, gradients of the loss to the parameters and to the student)."""

    @jax.jit
    def run(params, s):
        def loss(params, s):
            out = method.loss(Extras(params, extras.state), t, s, None, None)
            return out.loss, out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, s)

    grads, out = run(extras.params, s)
    return out, grads


@functools.cache
def plain():
    return loss_and_grad(METHOD, EXTRAS, T, S)


@functools.cache
def attention(query_relu=False):
    """[B, T, S]."""
    module = functools.partial(attend, Attention(8, query_relu))
    inputs = list(T.feats.values()), list(S.feats.values())
    return np.asarray(jax.jit(module)(EXTRAS.params, EXTRAS.state["batch_stats"], *inputs)[0])


# AFD


def golden_weights(d) -> Extras:
    """The authors' modules under our names; theirs has a batch norm for each of the blocks."""
    params, state = {}, {}

    def linear(theirs, ours):
        params[ours] = {"kernel": d[f"{theirs}.weight"], "bias": d[f"{theirs}.bias"]}

    def norm(theirs, ours):
        def stack(name):
            return np.squeeze(np.stack([d[f"{layer}.bn.{name}"] for layer in theirs]))

        params[ours] = {"scale": stack("weight"), "bias": stack("bias")}
        state[ours] = {"mean": stack("running_mean"), "var": stack("running_var")}

    bilinear = "w.attention.linear_trans_s.bilinear"
    linear(f"{bilinear}.linear", "bilinear")
    norm([bilinear], "bilinear_bn")
    for side, name, n in (("t", "query", 4), ("s", "key", 3)):
        layers = [f"w.attention.linear_trans_{side}.{name}_layer.{i}" for i in range(n)]
        norm(layers, f"{name}_bn")
        for i, layer in enumerate(layers):
            linear(f"{layer}.linear", f"{name}{i + 1}")
    params["teacher_positions"] = d["w.attention.p_t"]
    params["student_positions"] = d["w.attention.p_s"]
    return Extras(params, state)


def test_afd_agrees_with_the_authors_code():
    d = dict(np.load(GOLDEN / "afd.npz"))
    t, s = (blocks([d[f"{net}{i}"] for i in range(n)]) for net, n in (("t", 4), ("s", 3)))
    method, extras = methods.create("afd", dim=32), golden_weights(d)
    fresh = method.init(KEY, t, s, None)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, extras)
    out, (_, grads) = loss_and_grad(method, extras, t, s)
    np.testing.assert_allclose(out.loss, d["loss"], rtol=RTOL)
    for i in range(3):
        grad, expected = grads.feats[f"block{i + 1}"], d[f"grad_s{i}"]
        np.testing.assert_allclose(grad, expected, rtol=0, atol=RTOL * np.abs(expected).max())


@pytest.mark.parametrize("query_relu", [False, True])
def test_attention_of_every_teacher_block_sums_to_one(query_relu):
    a = attention(query_relu)
    assert a.shape == (4, 3, 2)
    np.testing.assert_allclose(a.sum(axis=2), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "teacher, student, stride, expected",
    [
        ("resnet56", "resnet20", 1, 643_200),
        ("resnet110", "resnet20", 2, 643_200),
        ("wrn_40_2", "wrn_16_2", 1, 543_488),
        ("resnet34_cifar", "wrn_28_2", 1, 880_640),
    ],
)
def test_attention_has_as_many_parameters_as_the_authors(teacher, student, stride, expected):
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def out(name):
        network = models.create(name, 100)
        return jax.eval_shape(lambda x: network.init_with_output(KEY, x)[0], image)

    method = methods.create("afd", teacher_stride=stride)
    t, s = out(teacher), out(student)
    params = jax.eval_shape(lambda: method.init(KEY, t, s, None)).params
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_blocks_that_are_missing_are_named():
    afd = methods.create("afd")
    with pytest.raises(ValueError, match="afd: the student has 0 residual blocks"):
        afd.init(KEY, T, ModelOut(LOGITS, {}), None)
    with pytest.raises(ValueError, match="afd: the teacher has 3 residual blocks.*at least 5"):
        methods.create("afd", teacher_stride=5).init(KEY, T, S, None)


# RTK


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
        ({"threshold": "fixed", "threshold_factor": -np.inf}, [1, 1, 1, 1]),
        ({"threshold": "ratio"}, [1, 0, 1, 0]),
        ({"threshold": "ratio", "top_k": 1, "keep_ratio": 0.25}, [1, 0, 0, 0]),
        ({"threshold": "ratio", "keep_ratio": 0.01, "top_k": 1}, [1, 0, 0, 0]),
        ({"threshold": "ratio", "keep_ratio": 0.75}, [1, 1, 1, 0]),
    ],
)
def test_keys_whose_attention_is_concentrated_are_representative(fields, expected):
    rtk = methods.create("rtk", **fields)
    np.testing.assert_array_equal(rtk.representative(ATTENTION), expected)


@pytest.mark.parametrize("threshold", ["mean", "fixed", "ratio"])
def test_some_key_is_always_representative(threshold):
    rtk = methods.create("rtk", threshold=threshold, threshold_factor=100.0, keep_ratio=0.01)
    nearly_uniform = jax.nn.softmax(0.01 * jax.random.normal(KEY, (50, 27, 9)))
    assert np.all(jax.vmap(rtk.representative)(nearly_uniform).sum(axis=1) >= 1)
    assert rtk.representative(jnp.full((27, 9), 1 / 9)).sum() == 27


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


def test_queries_pass_a_relu_if_asked():
    """Batch norms that make every query -1: after a ReLU only the positions are left."""
    below_zero = {"scale": jnp.zeros((3, 8)), "bias": -jnp.ones((3, 8))}
    params = EXTRAS.params | {"query_bn": below_zero}
    positions = params["teacher_positions"] @ params["student_positions"].T / 8**0.5
    expected = jax.nn.softmax(positions).T
    for query_relu in (True, False):
        rtk = methods.create("rtk", dim=8, query_relu=query_relu)
        out = jax.jit(rtk.loss)(Extras(params, EXTRAS.state), T, S, None, None)
        same = np.allclose(out.metrics["attention"], expected, rtol=1e-5)
        assert same == query_relu


def test_positions_start_as_xaviers():
    """Normal, with variance 2 / (blocks + dim), not truncated at two standard deviations."""
    p = methods.create("afd", dim=512).init(KEY, T, S, None).params["teacher_positions"]
    np.testing.assert_allclose(np.std(p), (2 / (3 + 512)) ** 0.5, rtol=0.1)
    assert np.abs(p).max() > 2.5 * np.std(p)


def test_a_single_student_block_gets_all_attention():
    t, s = noise(0, (4, 4, 4), (4, 4, 4)), noise(2, (4, 4, 5))
    extras = METHOD.init(KEY, t, s, None)
    out = jax.jit(METHOD.loss)(extras, t, s, None, None)
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
    rescaled = jax.jit(methods.create("rtk", dim=8, rescale=True).loss)(EXTRAS, T, S, None, None)
    out, _ = plain()
    expected = out.loss * 3 / out.metrics["representative_keys"]
    np.testing.assert_allclose(rescaled.loss, expected, rtol=1e-6)


def test_all_keys_are_used_until_the_warmup_is_over():
    rtk = methods.create("rtk", dim=8, select_warmup=2)
    loss, extras, used = jax.jit(rtk.loss), EXTRAS, []
    for _ in range(3):
        out = loss(extras, T, S, None, None)
        extras = Extras(EXTRAS.params, out.state)
        used.append(float(out.metrics["representative_keys"]))
    assert used[:2] == [3, 3] and used[2] < 3


@pytest.mark.parametrize("select_on", ["mean", "per_sample"])
def test_what_keys_are_selected_on_is_averaged_over_steps(select_on):
    rtk = methods.create("rtk", dim=8, ema=0.9, select_on=select_on)
    a = attention()
    if select_on == "per_sample":
        a = -np.sort(-np.asarray(a), axis=2)
    expected = np.mean(a, axis=0)
    loss, extras = jax.jit(rtk.loss), EXTRAS
    for n in (1, 2):
        state = loss(extras, T, S, None, None).state
        # The same batch twice: the average that starts from zero lacks 0.9^n.
        np.testing.assert_allclose(state["attention"], (1 - 0.9**n) * expected, rtol=1e-5)
        extras = Extras(EXTRAS.params, state)


def test_keys_are_selected_on_the_average():
    """Of long ago, here; a first step, whose average is a tenth, selects as if there were none."""
    sharp = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])  # for one teacher block of three
    fields = {"dim": 8, "threshold": "fixed", "threshold_factor": 1.12, "top_k": 1}
    loss = jax.jit(methods.create("rtk", ema=0.9, **fields).loss)
    old = EXTRAS.state | {"attention": sharp, "step": jnp.int32(1000)}
    selected = []
    for state in (old, EXTRAS.state):
        out = loss(Extras(EXTRAS.params, state), T, S, None, None)
        average = out.state["attention"] / (1 - 0.9 ** float(out.state["step"]))
        rtk = methods.create("rtk", **fields)
        assert out.metrics["representative_keys"] == rtk.representative(average).sum()
        selected.append(int(out.metrics["representative_keys"]))
    assert selected[0] != selected[1], selected


def test_rtk_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="unknown rtk.threshold 'men'; did you mean 'mean'"):
        methods.create("rtk", threshold="men")
    with pytest.raises(ValueError, match="rtk: top_k must be in 1..2"):
        methods.create("rtk", top_k=3).init(KEY, T, S, None)
    with pytest.raises(ValueError, match=re.escape("rtk: ema must be in [0, 1), not 1")):
        methods.create("rtk", ema=1)


# SoftPool

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
