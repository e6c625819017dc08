"""Losses and gradients against the authors' PyTorch code, on fixed inputs with given weights.

tests/golden/*.npz were measured with RepDistiller b84f547 (dkd_*: mdistiller a08d46f) in float32 on
a CPU: inputs s0.. and t0.., the unweighted loss, and its gradients grad_s0...
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods
from atkd_jax.methods import Context, Extras
from atkd_jax.types import Batch, ModelOut

GOLDEN = pathlib.Path(__file__).parent / "golden"
RTOL = 1e-5  # of the loss, and of the largest entry of a gradient; measured: 3e-6 at most

STAGES = ("stage1", "stage2", "stage3")
LOGITS, POOLED, HINT, LAST = ("logits",), ("pooled",), ("stage2",), ("stage3",)


def vid_weights(d):
    return Extras(
        [
            {
                "rho": d[f"w{i}.log_scale"],
                "kernels": [d[f"w{i}.regressor.{layer}.weight"][0, 0] for layer in (0, 2, 4)],
            }
            for i in range(3)
        ]
    )


def cc_weights(d):
    return Extras(
        {
            role: {"kernel": d[f"{key}.linear.weight"], "bias": d[f"{key}.linear.bias"]}
            for role, key in (("teacher", "w_t"), ("student", "w_s"))
        }
    )


def fitnet_weights(d):
    return Extras(
        {
            "conv": {"kernel": d["w.conv.weight"], "bias": d["w.conv.bias"]},
            "bn": {"scale": d["w.bn.weight"], "bias": d["w.bn.bias"]},
        },
        {"bn": {"mean": d["w.bn.running_mean"], "var": d["w.bn.running_var"]}},
    )


def fitnet_up_weights(d):
    """PyTorch writes the kernel of a transposed convolution the other way round."""
    return fitnet_weights(d | {"w.conv.weight": d["w.conv.weight"][::-1, ::-1]})


def no_weights(d):
    return Extras()


class Case(NamedTuple):
    file: str
    method: methods.Method
    taps: tuple[str, ...]
    weights: Callable[[dict], Extras] = no_weights


CASES = [
    Case("kd_T1", methods.create("kd", temperature=1.0), LOGITS),
    Case("kd_T4", methods.create("kd", temperature=4.0), LOGITS),
    Case("at_same", methods.create("at"), STAGES),
    Case("at_cross", methods.create("at"), STAGES),
    Case("fitnet_equal", methods.create("fitnet"), HINT, fitnet_weights),
    Case("fitnet_down", methods.create("fitnet"), HINT, fitnet_weights),
    Case("fitnet_up", methods.create("fitnet"), HINT, fitnet_up_weights),
    Case("fitnet_valid", methods.create("fitnet"), HINT, fitnet_weights),
    Case("sp_same", methods.create("sp"), LAST),
    Case("sp_cross", methods.create("sp"), LAST),
    Case("cc", methods.create("cc"), POOLED, cc_weights),
    Case("vid_same", methods.create("vid"), STAGES, vid_weights),
    Case("vid_cross", methods.create("vid"), STAGES, vid_weights),
    Case("rkd", methods.create("rkd"), POOLED),
    Case("pkt", methods.create("pkt"), POOLED),
    Case("nst_same", methods.create("nst"), STAGES),
    Case("nst_cross", methods.create("nst"), STAGES),
    Case("fsp_same", methods.create("fsp", taps=STAGES), STAGES),
    Case("dkd_T1_a1_b0.5", methods.create("dkd", beta=0.5, temperature=1.0), LOGITS),
    Case("dkd_T4_a1_b2", methods.create("dkd", beta=2.0, temperature=4.0), LOGITS),
]


def model_out(taps, arrays):
    """A network's output that holds the arrays under their taps, and the stages sp asks for."""
    b = arrays[0].shape[0]
    feats = {stage: jnp.zeros((b, 1, 1, 1)) for stage in STAGES} | dict(
        zip(taps, arrays, strict=True)
    )
    return ModelOut(feats.pop("logits", jnp.zeros((b, 10))), feats)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_method_agrees_with_the_authors_code(case):
    d = dict(np.load(GOLDEN / f"{case.file}.npz"))
    t, s = ([d[f"{net}{i}"] for i in range(len(case.taps))] for net in "ts")
    label = d.get("label", np.zeros(len(s[0]))).astype(np.int32)
    batch = Batch(image=None, label=label, index=np.arange(len(label)))

    @jax.jit
    def loss_and_grad(extras, t, s, batch):
        def loss(s):
            outs = model_out(case.taps, t), model_out(case.taps, s)
            return case.method.loss(extras, *outs, batch, Context(jax.random.key(0))).loss

        return jax.value_and_grad(loss)(s)

    loss, grads = loss_and_grad(case.weights(d), t, s, batch)
    np.testing.assert_allclose(loss, d["loss"], rtol=RTOL)
    for i, grad in enumerate(grads):
        expected = d[f"grad_s{i}"]
        np.testing.assert_allclose(grad, expected, rtol=0, atol=RTOL * np.abs(expected).max())
