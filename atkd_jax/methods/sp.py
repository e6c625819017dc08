"""Similarity-preserving distillation: similarities between the examples of a batch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class SP(Method):
    """Similarity-Preserving Knowledge Distillation (Tung & Mori 2019, arXiv 1907.09682).

        G(F) = l2n_rows(X X^T),    X = F as [B, H W C],  G [B, B]
        L    = ||G(F_s) - G(F_t)||_F^2 / B^2

    F is the last stage of each network; their shapes may differ. Published weight: 3000
    (RepDistiller).
    """

    needs_global_batch: ClassVar[bool] = True

    def init(self, rng, t, s, data):
        taps.last_stages("sp", t, s)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        g_t, g_s = (_similarity(f) for f in taps.last_stages("sp", t, s))
        return LossOut(jnp.square(g_s - g_t).mean())


def _similarity(feat: Array) -> Array:
    x = ops.f32(feat).reshape(feat.shape[0], -1)
    return ops.l2_normalize(jnp.matmul(x, x.T, precision="highest"))
