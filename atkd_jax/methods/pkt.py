"""Probabilistic knowledge transfer: the neighbourhood of every example as a distribution."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.types import Array

EPSILON = 1e-7  # the authors'


@dataclasses.dataclass(frozen=True)
class PKT(Method):
    """Learning Deep Representations with Probabilistic Knowledge Transfer
    (Passalis & Tefas 2018, arXiv 1803.10837).

        S = (cos(x_i, x_j) + 1) / 2,   P = S / row sums        [B, B], x the pooled features [B, C]
        L = mean_ij P_t log(P_t / P_s)

    The mean, where the paper has the sum, is the authors' code; the published weight, 30000
    (RepDistiller), makes up for it.
    """

    needs_global_batch: ClassVar[bool] = True

    def init(self, rng, t, s, data):
        taps.tap_pairs("pkt", t, s, ("pooled",))
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        ((x_t, x_s),) = taps.tap_pairs("pkt", t, s, ("pooled",))
        p_t, p_s = _neighbours(x_t), _neighbours(x_s)
        return LossOut((p_t * jnp.log((p_t + EPSILON) / (p_s + EPSILON))).mean())


def _neighbours(x: Array) -> Array:
    x = ops.f32(x)
    x = x / (ops.safe_sqrt(jnp.square(x).sum(axis=-1, keepdims=True)) + EPSILON)
    s = (jnp.matmul(x, x.T, precision="highest") + 1) / 2
    return s / s.sum(axis=-1, keepdims=True)
