"""Flow of the solution procedure: correlations of a stage's channels with the previous stage's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise

import jax.numpy as jnp

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NAME, setting, tuple_of
from atkd_jax.types import Array, ModelOut


@dataclasses.dataclass(frozen=True)
class FSP(Method):
    """A Gift from Knowledge Distillation (Yim et al. 2017, CVPR).

        M_l = mean_hw F^{l+1}_c F^l_c'                   [B, C_{l+1}, C_l], one matrix per step
        L   = sum_l mean (M_s^l - M_t^l)^2

    Of two consecutive features of different size the larger is average-pooled. Both networks need
    the same channels at every tap. The benchmark (RepDistiller) uses this loss only to initialise:
    30 epochs of it alone, then plain cross-entropy.

    Attributes:
      taps: the features, in order; none named: the stem and every stage that both have.
    """

    taps: tuple[str, ...] = setting((), tuple_of(NAME))

    def init(self, rng, t, s, data):
        pairs = self._pairs(t, s)
        if len(pairs) < 2:
            raise UserError("fsp: taps needs at least two features")
        channels = [tuple(f.shape[-1] for f in feats) for feats in zip(*pairs, strict=True)]
        if channels[0] != channels[1]:
            raise UserError(
                f"fsp: the teacher has {channels[0]} channels, the student {channels[1]}; "
                "they have to be equal"
            )
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        flow_t, flow_s = (_flow(feats) for feats in zip(*self._pairs(t, s), strict=True))
        losses = (jnp.square(m_s - m_t).mean() for m_t, m_s in zip(flow_t, flow_s, strict=True))
        return LossOut(sum(losses, start=jnp.zeros(())))

    def _pairs(self, t: ModelOut, s: ModelOut) -> list[tuple[Array, Array]]:
        stem = [] if self.taps else taps.map_pairs("fsp", t, s, ("stem",))
        return stem + taps.map_pairs("fsp", t, s, self.taps)


def _flow(feats: Iterable[Array]) -> list[Array]:
    matrices = []
    for bottom, top in pairwise(feats):
        bottom, top = ops.pool_to_smaller(bottom, top)
        pixels = top.shape[1] * top.shape[2]
        matrices.append(jnp.einsum("bhwc,bhwd->bcd", top, bottom, precision="highest") / pixels)
    return matrices
