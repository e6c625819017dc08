"""AFD against its authors' code (attention-feature-distillation dd990d0)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import KEY, S, T, attention, blocks, loss_and_grad

from atkd_jax import methods, models
from atkd_jax.methods import Extras

GOLDEN = pathlib.Path(__file__).parent / "golden"
RTOL = 1e-5  # of the loss, and of the largest entry of a gradient; measured: 1e-6
LOGITS = np.zeros((4, 10), np.float32)


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


@pytest.mark.slow
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


def test_positions_start_as_xaviers():
    """Normal, with variance 2 / (blocks + dim), not truncated at two standard deviations."""
    p = methods.create("afd", dim=512).init(KEY, T, S, None).params["teacher_positions"]
    np.testing.assert_allclose(np.std(p), (2 / (3 + 512)) ** 0.5, rtol=0.1)
    assert np.abs(p).max() > 2.5 * np.std(p)
