"""Variational information distillation: a Gaussian model of the teacher's features."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NAME, setting, tuple_of
from atkd_jax.types import Array, PyTree

MIN_VARIANCE = 1e-5
INITIAL_VARIANCE = 5.0


@dataclasses.dataclass(frozen=True)
class VID(Method):
    """Variational Information Distillation (Ahn et al. 2019, arXiv 1904.05835).

        mu(F_s)  = W_3 relu(W_2 relu(W_1 F_s))           1x1 convolutions without bias, C_s -> C_t
        sigma^2  = softplus(rho) + 1e-5                  [C_t], learned, 5 at the start
        L = sum_l mean_{b,h,w,c} 1/2 ((mu(F_s^l) - F_t^l)^2 / sigma^2 + log sigma^2)

    The negative log-likelihood of the teacher's features without its constant: it may be negative,
    and is 1/2 log 5 = 0.80 per stage for a perfect prediction at the start. Of two maps of
    different size the larger is average-pooled. Published weight: 1 (RepDistiller; mdistiller does
    not train rho).

    Attributes:
      taps: the features to compare; none named: every stage that both networks have.
    """

    taps: tuple[str, ...] = setting((), tuple_of(NAME))

    def init(self, rng, t, s, data):
        pairs = taps.map_pairs("vid", t, s, self.taps)
        keys = jax.random.split(rng, len(pairs))
        return Extras(
            [
                _init_stage(key, f_s.shape[-1], f_t.shape[-1])
                for key, (f_t, f_s) in zip(keys, pairs, strict=True)
            ]
        )

    def loss(self, extras, t, s, batch, ctx):
        pairs = taps.map_pairs("vid", t, s, self.taps)
        return LossOut(
            sum(
                (
                    _stage_loss(params, *ops.pool_to_smaller(f_t, f_s))
                    for params, (f_t, f_s) in zip(extras.params, pairs, strict=True)
                ),
                start=jnp.zeros(()),
            )
        )


def _init_stage(rng: Array, c_s: int, c_t: int) -> PyTree:
    widths = [(c_s, c_t), (c_t, c_t), (c_t, c_t)]
    keys = jax.random.split(rng, len(widths))
    rho = math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE))
    return {
        "rho": jnp.full((c_t,), rho, jnp.float32),
        "kernels": [
            ops.torch_uniform_init(shape[0])(key, shape)
            for key, shape in zip(keys, widths, strict=True)
        ],
    }


def _stage_loss(params: dict[str, Array], f_t: Array, f_s: Array) -> Array:
    w1, w2, w3 = params["kernels"]
    mean = jax.nn.relu(jax.nn.relu(f_s @ w1) @ w2) @ w3  # [B, H, W, C_t]
    variance = jax.nn.softplus(params["rho"]) + MIN_VARIANCE  # [C_t]
    square = jnp.square(mean - f_t).mean(axis=(0, 1, 2))  # [C_t]
    return (square / variance + jnp.log(variance)).mean() / 2
