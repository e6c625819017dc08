"""ReviewKD against mdistiller's code (a08d46f), and its parts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods
from atkd_jax.methods import Extras
from atkd_jax.methods.reviewkd import hierarchical_context_loss, nearest_resize
from atkd_jax.types import ModelOut

GOLDEN = pathlib.Path(__file__).parent / "golden"
RTOL = 1e-5  # of the loss, and of the largest entry of a gradient


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


def test_reviewkd_agrees_with_the_authors_code():
    d = dict(np.load(GOLDEN / "reviewkd.npz"))
    method, extras = methods.create("reviewkd"), golden_weights(d)
    t, out, maps = golden_outs(d)
    fresh = method.init(jax.random.key(0), t, out(maps), None)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, extras)

    @jax.jit
    def loss_and_grad(maps):
        return jax.value_and_grad(lambda m: method.loss(extras, t, out(m), None, None).loss)(maps)

    loss, grads = loss_and_grad(maps)
    np.testing.assert_allclose(loss, d["loss"], rtol=RTOL)
    for i, grad in enumerate(grads):
        expected = d[f"grad_s{i}"]
        np.testing.assert_allclose(grad, expected, rtol=0, atol=RTOL * np.abs(expected).max())
