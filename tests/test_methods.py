"""What every method promises: one row each, and one for each variant with code of its own."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods
from atkd_jax.methods import METHODS, Extras
from atkd_jax.training.objective import Objective, Term
from atkd_jax.types import Batch, DataInfo, ModelOut

B, K, N = 8, 10, 64
LABELS = np.arange(N, dtype=np.int32) % K
DATA = DataInfo(
    name="fake",
    image_shape=(8, 8, 3),
    class_names=tuple("abcdefghij"),
    num_train=N,
    num_test=N,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    train_label=LABELS,
)
# Channels of the stages, at 8x8, 4x4 and 2x2, and blocks in each.
SMALL, LARGE = ((4, 8, 16), 1), ((8, 16, 32), 2)


class Row(NamedTuple):
    name: str
    fields: dict = {}
    t: tuple = LARGE
    s: tuple = SMALL
    zero_for_equal: bool = False


ROWS = [
    Row("kd", zero_for_equal=True),
    Row("at", zero_for_equal=True),
    Row("self_attention", zero_for_equal=True),
    Row("fitnet"),
    Row("sp", zero_for_equal=True),
    Row("cc"),
    Row("vid"),
    Row("rkd", zero_for_equal=True),
    Row("pkt", zero_for_equal=True),
    Row("nst", zero_for_equal=True),
    Row("fsp", t=SMALL, zero_for_equal=True),
    Row("crd", {"negatives": 32}),
    Row("afd", {"dim": 16}),
    Row("rtk", {"dim": 16}),
    Row("aft"),
    Row("dkd", zero_for_equal=True),
    Row("reviewkd"),
]
VARIANTS = [
    Row("at", {"variant": "paper"}, zero_for_equal=True),
    Row("self_attention", {"scale": "sqrt_d", "heads": 2, "max_size": 4}, zero_for_equal=True),
    Row("fitnet", {"tap": "stage1", "use_relu": False}),
    Row("rtk", {"dim": 16, "select_on": "per_sample", "ema": 0.9, "resample": "softpool_map"}),
]
every_row = pytest.mark.parametrize("row", ROWS + VARIANTS, ids=lambda row: row.name)


def fake_out(net, seed, dtype=np.float32) -> ModelOut:
    """What a network might say: a residual network's taps, filled with noise."""
    (channels, depth), rng = net, np.random.default_rng(seed)
    feats = {"stem": np.maximum(rng.normal(size=(B, 8, 8, channels[0])), 0)}
    for i, c in enumerate(channels):
        shape = (B, 8 >> i, 8 >> i, c)
        for j in range(depth):
            pre = rng.normal(size=shape)
            feats[f"block{depth * i + j + 1}"] = np.maximum(pre, 0)
        feats |= {f"stage{i + 1}_pre": pre, f"stage{i + 1}": np.maximum(pre, 0)}
    feats["pooled"] = feats["stage3"].mean(axis=(1, 2))
    feats = {tap: jnp.asarray(feat, dtype) for tap, feat in feats.items()}
    return ModelOut(jnp.asarray(rng.normal(size=(B, K)), jnp.float32), feats)


def fake_batch(seed) -> Batch:
    index = np.random.default_rng(seed).permutation(N)[:B].astype(np.int32)
    return Batch(jnp.zeros((B, 8, 8, 3)), jnp.asarray(LABELS[index]), jnp.asarray(index))


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def created(row, t, s):
    method = methods.create(row.name, **row.fields)
    return method, method.init(jax.random.key(0), shapes_of(t), shapes_of(s), DATA)


class Trained(NamedTuple):
    """Two steps of one method on noise, the second from the first one's state, and a third on a
    student all of whose features are zero."""

    extras: Extras
    losses: list
    states: list
    grads: list  # (params, teacher, student)
    traces: int


@functools.cache
def trained(row_index, dtype) -> Trained:
    row = (ROWS + VARIANTS)[row_index]
    t, s = fake_out(row.t, 0, dtype), fake_out(row.s, 1, dtype)
    method, extras = created(row, t, s)
    objective = Objective(ce_weight=0.0, terms={"term": Term(1.0, method)})
    traces = 0

    @jax.jit
    def step(params, state, t, s, batch, rng):
        nonlocal traces
        traces += 1

        def loss(params, t, s):
            inside = Extras({"term": params}, {"term": state})
            _, (states, metrics) = objective.loss(inside, t, s, batch, rng, 0)
            return metrics["term"], states["term"]

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, t, s)

    losses, states, grads = [], [], []
    state, zeros = extras.state, jax.tree.map(jnp.zeros_like, s)
    for i, student in enumerate((s, s, zeros)):
        args = t, student, fake_batch(i), jax.random.key(i)
        (loss, state), grad = step(extras.params, state, *args)
        losses.append(loss)
        states.append(state)
        grads.append(grad)
    return Trained(extras, losses, states, grads, traces)


def results(row, dtype=jnp.float32) -> Trained:
    return trained((ROWS + VARIANTS).index(row), dtype)


def test_every_method_has_a_row():
    assert sorted(row.name for row in ROWS) == sorted(METHODS)


@pytest.mark.slow
@every_row
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_loss_is_a_finite_float32_scalar_with_finite_gradients(row, dtype):
    out = results(row, dtype)
    for loss in out.losses:
        assert loss.shape == () and loss.dtype == jnp.float32 and np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(out.grads))


@pytest.mark.slow
@every_row
def test_student_and_own_parameters_learn_and_the_teacher_does_not(row):
    params, teacher, student = results(row).grads[0]
    assert any(np.any(g != 0) for g in jax.tree.leaves(student))
    assert all(np.all(g == 0) for g in jax.tree.leaves(teacher))
    for path, g in jax.tree.leaves_with_path(params):
        # RTK's queries of teacher blocks that are not selected stand still.
        assert np.any(g != 0) or (row.name == "rtk" and "query" in jax.tree_util.keystr(path)), path


@pytest.mark.slow
@every_row
def test_bfloat16_features_give_nearly_the_same_loss(row):
    expected = results(row).losses[0]
    np.testing.assert_allclose(results(row, jnp.bfloat16).losses[0], expected, rtol=0.05)


@pytest.mark.slow
@every_row
def test_state_keeps_its_structure_shapes_and_dtypes(row):
    out = results(row)
    for state in out.states:
        assert shapes_of(state) == shapes_of(out.extras.state)


@pytest.mark.slow
@every_row
def test_a_method_is_traced_once(row):
    assert results(row).traces == 1


@pytest.mark.parametrize(
    "row", [r for r in ROWS + VARIANTS if r.zero_for_equal], ids=lambda row: row.name
)
def test_loss_of_equal_outputs_is_zero(row):
    out = fake_out(row.s, 2)
    method, extras = created(row, out, out)
    loss = jax.jit(method.loss)(extras, out, out, fake_batch(0), jax.random.key(0)).loss
    np.testing.assert_allclose(loss, 0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [r for r in ROWS + VARIANTS if not METHODS[r.name].needs_global_batch],
    ids=lambda row: row.name,
)
def test_loss_that_does_not_couple_examples_is_the_mean_over_devices(row):
    t, s, batch = fake_out(row.t, 3), fake_out(row.s, 4), fake_batch(5)
    method, extras = created(row, t, s)
    if hasattr(method, "axis_name"):
        method = dataclasses.replace(method, axis_name="devices")

    @jax.jit
    def mean_loss(args):
        loss = jax.vmap(method.loss, (None, 0, 0, 0, None), axis_name="devices")
        return loss(extras, *args, jax.random.key(0)).loss.mean()

    def split(n):
        return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), (t, s, batch))

    np.testing.assert_allclose(mean_loss(split(2)), mean_loss(split(1)), rtol=1e-5)


def test_unknown_names_give_the_nearest_match():
    with pytest.raises(ValueError, match="unknown method 'fitnets'; did you mean 'fitnet'"):
        methods.create("fitnets")
    with pytest.raises(ValueError, match="hyper-parameter of kd 'temp.*'; did you mean 'temper"):
        methods.create("kd", temperatur=4.0)
