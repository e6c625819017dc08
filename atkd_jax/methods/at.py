"""Attention transfer: where a network is active."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NAME, one_of, setting, tuple_of
from atkd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class AT(Method):
    """Paying More Attention to Attention (Zagoruyko & Komodakis 2017, arXiv 1612.03928).

        Q(F) = l2n(vec mean_c F^2)                       [B, H, W, C] -> [B, HW]
        L    = sum_l mean_{b,hw} (Q(F_s^l) - Q(F_t^l))^2

    Of two maps of different size, the larger *features* are average-pooled before they are squared
    (RepDistiller). Stages are paired from the front. Published weight: 1000, CIFAR and ImageNet
    (szagoruyko/attention-transfer, RepDistiller).

    Attributes:
      taps: the features to compare; none named: every stage that both networks have.
      variant: "code", the loss above, which the published tables used, or "paper", equation 2 of
        the paper: 1/2 sum_l mean_b ||Q(F_s^l) - Q(F_t^l)||_2.
    """

    taps: tuple[str, ...] = setting((), tuple_of(NAME))
    variant: str = setting("code", one_of("code", "paper"))

    def init(self, rng, t, s, data):
        taps.map_pairs("at", t, s, self.taps)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        stages = [
            self._stage_loss(*ops.pool_to_smaller(f_t, f_s))
            for f_t, f_s in taps.map_pairs("at", t, s, self.taps)
        ]
        return LossOut(sum(stages, start=jnp.zeros(())))

    def _stage_loss(self, f_t: Array, f_s: Array) -> Array:
        q_t, q_s = (ops.l2_normalize(ops.attention_map(f), axis=(1, 2)) for f in (f_t, f_s))
        square = jnp.square(q_s - q_t)  # [B, H, W]
        if self.variant == "paper":
            return ops.safe_sqrt(square.sum(axis=(1, 2))).mean() / 2
        return square.mean()
