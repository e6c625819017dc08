"""CRD against RepDistiller's code (b84f547), its negatives, and its memory."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods
from atkd_jax.methods import Context, Extras, crd
from atkd_jax.types import Batch, DataInfo, ModelOut

GOLDEN = pathlib.Path(__file__).parent / "golden"
RTOL = 1e-5  # of loss and Z, and of a gradient's or bank's largest entry; measured: 5e-7
KEY = jax.random.key(0)


def dataset(train_label, n=None) -> DataInfo:
    n = n or len(train_label)
    names = tuple("abcdefghij")
    return DataInfo("fake", (8, 8, 3), names, n, n, (0,) * 3, (1,) * 3, train_label)


def pooled(x) -> ModelOut:
    return ModelOut(jnp.zeros((len(x), 10)), {"pooled": jnp.asarray(x)})


def golden_extras(d) -> Extras:
    params = {
        role: {"kernel": d[f"{w}.weight"], "bias": d[f"{w}.bias"]}
        for role, w in (("teacher", "w_t"), ("student", "w_s"))
    }
    state = {"memory_t": d["memory_t_0"], "memory_s": d["memory_s_0"], "z": np.zeros(2, np.float32)}
    return Extras(params, jax.tree.map(jnp.asarray, state))


@pytest.fixture(scope="module")
def two_steps():
    """[(loss, gradient, state), ...] of two consecutive steps on the golden inputs."""
    d = dict(np.load(GOLDEN / "crd.npz"))
    method, (params, state) = methods.create("crd", negatives=int(d["k"])), golden_extras(d)

    @jax.jit
    def step(state, t, s, index, negatives):
        def loss(s):
            out = method.contrast(Extras(params, state), pooled(t), pooled(s), index, negatives)
            return out.loss, out.state

        return jax.value_and_grad(loss, has_aux=True)(s)

    steps = []
    for i in range(2):
        table = d[f"table_{i}"].astype(np.int32)
        (loss, state), grad = step(state, d[f"t_{i}"], d[f"s_{i}"], table[:, 0], table[:, 1:])
        steps.append((loss, grad, state))
    return d, steps


@pytest.mark.parametrize("i", [0, 1])
def test_crd_agrees_with_the_authors_code(two_steps, i):
    d, steps = two_steps
    loss, grad, state = steps[i]
    np.testing.assert_allclose(loss, d[f"loss_{i}"], rtol=RTOL)
    np.testing.assert_allclose(state["z"], d[f"z_{i}"], rtol=RTOL)
    for ours, name in (
        (grad, f"grad_s_{i}"),
        (state["memory_s"], f"memory_s_{i + 1}"),
        (state["memory_t"], f"memory_t_{i + 1}"),
    ):
        np.testing.assert_allclose(ours, d[name], rtol=0, atol=RTOL * np.abs(d[name]).max())


def test_z_is_that_of_the_first_batch(two_steps):
    _, ((_, _, first), (_, _, second)) = two_steps
    assert np.all(first["z"] > 0)
    np.testing.assert_array_equal(first["z"], second["z"])


def test_only_rows_of_the_batch_move_and_have_length_one(two_steps):
    d, ((_, _, first), _) = two_steps
    for bank in ("memory_s", "memory_t"):
        before, after = d[f"{bank}_0"], np.asarray(first[bank])
        moved = np.any(before != after, axis=1)
        assert sorted(np.flatnonzero(moved)) == sorted(d["index_0"])
        np.testing.assert_allclose(np.linalg.norm(after[moved], axis=1), 1, rtol=1e-5)


def small_crd():
    """CRD on 40 examples of 5 classes, its extras, and a batch of six."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.arange(40) % 5).astype(np.int32)
    method = methods.create("crd", dim=16, negatives=24)
    t, s = pooled(rng.normal(size=(6, 5)).astype("f")), pooled(rng.normal(size=(6, 3)).astype("f"))
    extras = method.init(KEY, t, s, dataset(label))
    index = rng.permutation(40)[:6].astype(np.int32)
    return method, extras, t, s, Batch(None, jnp.asarray(label[index]), jnp.asarray(index))


def test_a_negative_that_is_drawn_twice_counts_twice():
    method, (params, state), t, s, batch = small_crd()
    z = np.array([30.0, 40.0], np.float32)
    drawn = np.random.default_rng(2).integers(0, 40, size=(6, 50))
    expected, c = 0, 50 / 40
    for out, role, bank, z_side in (
        (s, "student", "memory_t", z[0]),
        (t, "teacher", "memory_s", z[1]),
    ):
        linear = jax.tree.map(np.asarray, params[role])
        e = np.asarray(out.feats["pooled"]) @ linear["kernel"] + linear["bias"]
        e /= np.linalg.norm(e, axis=1, keepdims=True)
        table = np.concatenate([batch.index[:, None], drawn], axis=1)
        o = np.exp(np.einsum("bkd,bd->bk", np.asarray(state[bank])[table], e) / 0.07) / z_side
        expected -= np.log(o[:, 0] / (o[:, 0] + c)).mean()
        expected -= np.log(c / (o[:, 1:] + c)).sum(axis=1).mean()
    extras = Extras(params, state | {"z": jnp.asarray(z)})
    out = jax.jit(method.contrast)(extras, t, s, batch.index, jnp.asarray(drawn, jnp.int32))
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)


def test_banks_and_z_get_no_gradient_and_both_embeddings_do():
    method, extras, t, s, batch = small_crd()
    banks = {name: extras.state[name] for name in ("memory_s", "memory_t", "z")}

    @jax.jit
    def grads(params, banks):
        def loss(params, banks):
            inside = Extras(params, extras.state | banks)
            return method.loss(inside, t, s, batch, Context(KEY)).loss

        return jax.grad(loss, argnums=(0, 1))(params, banks)

    params, banks = grads(extras.params, banks)
    assert all(np.all(g == 0) for g in jax.tree.leaves(banks))
    assert all(np.any(g != 0) for g in jax.tree.leaves(params))


def test_banks_start_with_rows_of_length_one_about():
    state = small_crd()[1].state
    for bank in (state["memory_s"], state["memory_t"]):
        bound = (3 / 16) ** 0.5
        assert bank.shape == (40, 16) and bank.dtype == jnp.float32
        assert -bound <= bank.min() < -0.98 * bound and 0.98 * bound < bank.max() <= bound
    assert np.any(state["memory_s"] != state["memory_t"])
    assert np.all(state["z"] == 0)


@pytest.mark.slow
def test_examples_that_do_not_fit_at_once_change_nothing(monkeypatch):
    method, extras, t, s, batch = small_crd()
    extras.state["z"] = jnp.full((2,), 30.0)

    def loss_and_grads():
        def loss(params):
            return method.loss(Extras(params, extras.state), t, s, batch, Context(KEY)).loss

        return jax.jit(jax.value_and_grad(loss))(extras.params)

    together = loss_and_grads()
    monkeypatch.setattr(crd, "MAX_SCORES", 4 * 40)  # four examples, then two
    apart = loss_and_grads()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, apart
    )


def test_negatives_are_every_example_of_every_other_class_equally_often():
    label = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 3], [2, 5, 1, 4])).astype("i4")
    method = methods.create("crd", dim=4)
    state = method.init(
        KEY, pooled(np.zeros((2, 3))), pooled(np.zeros((2, 3))), dataset(label)
    ).state
    k = 20_000
    drawn = crd.draw_negatives(KEY, jnp.arange(12, dtype=jnp.int32), state["classes"], k)
    assert drawn.dtype == jnp.int32
    for i, row in enumerate(np.asarray(drawn)):
        share = np.bincount(row, minlength=12) / k
        others = label != label[i]
        assert np.all(share[~others] == 0)
        # Five standard deviations.
        p = 1 / others.sum()
        np.testing.assert_allclose(share[others], p, atol=5 * (p * (1 - p) / k) ** 0.5)


@pytest.mark.parametrize("fields", [{}, {"other_classes": False}])
def test_without_classes_negatives_are_all_other_examples(fields):
    label = None if not fields else np.zeros(7, np.int32)
    method = methods.create("crd", dim=4, **fields)
    x = pooled(np.zeros((2, 3)))
    classes = method.init(KEY, x, x, dataset(label, 7)).state["classes"]
    drawn = np.asarray(crd.draw_negatives(KEY, jnp.arange(7, dtype=jnp.int32), classes, 500))
    for i, row in enumerate(drawn):
        assert set(row) == set(range(7)) - {i}


def test_crd_refuses_data_and_networks_that_do_not_fit():
    method, x = methods.create("crd"), pooled(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="crd: the teacher has no tap pooled"):
        method.init(KEY, ModelOut(x.logits, {}), x, dataset(np.arange(4)))
    with pytest.raises(ValueError, match="crd: all 4 examples are of one class"):
        method.init(KEY, x, x, dataset(np.zeros(4, np.int32)))
    with pytest.raises(ValueError, match="crd: 4 training labels for 5 examples of fake"):
        method.init(KEY, x, x, dataset(np.arange(4), 5))
    with pytest.raises(ValueError, match="CRD.temperature 0"):
        methods.create("crd", temperature=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50_000, 1_281_167], ids=["cifar", "imagenet"])
def test_published_size_fits_in_two_gib(n):
    """B = 64, K = 16384, dim = 128, for which the authors' code gathers 1.1 GB; only compiled."""
    method, x = methods.create("crd"), pooled(np.zeros((64, 64), np.float32))
    data = dataset(np.arange(n, dtype=np.int32) % 10)
    extras = jax.eval_shape(lambda: method.init(KEY, x, x, data))
    batch = Batch(None, None, jax.ShapeDtypeStruct((64,), jnp.int32))

    @jax.jit
    def step(params, state, batch, rng):
        def loss(params):
            out = method.loss(Extras(params, state), x, x, batch, Context(rng))
            return out.loss, out.state

        return jax.value_and_grad(loss, has_aux=True)(params)

    compiled = step.lower(*extras, batch, KEY).compile()
    # It holds at least the scores of one example.
    assert 4 * n <= compiled.memory_analysis().temp_size_in_bytes < 2 * 2**30
