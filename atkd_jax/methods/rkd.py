"""Relational knowledge distillation: distances and angles between examples."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NOT_NEGATIVE, setting
from atkd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class RKD(Method):
    """Relational Knowledge Distillation (Park et al. 2019, arXiv 1904.05068).

        D_ij  = ||x_i - x_j|| / mean over i != j         [B, B], x the pooled features [B, C]
        A_ijk = cos(x_i - x_j, x_i - x_k)                [B, B, B]
        L     = 25 mean huber(D_s - D_t) + 50 mean huber(A_s - A_t)

    huber(d) is d^2 / 2 for |d| < 1, else |d| - 1/2. Published weight: 1 (RepDistiller). Memory
    B^2 C for the differences and B^3 for the angles, B the global batch.

    Attributes:
      distance_weight, angle_weight: of the two parts.
    """

    needs_global_batch: ClassVar[bool] = True

    distance_weight: float = setting(25.0, NOT_NEGATIVE)
    angle_weight: float = setting(50.0, NOT_NEGATIVE)

    def init(self, rng, t, s, data):
        taps.tap_pairs("rkd", t, s, ("pooled",))
        taps.check_two_examples("rkd", s)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        ((x_t, x_s),) = taps.tap_pairs("rkd", t, s, ("pooled",))
        (d_t, a_t), (d_s, a_s) = _relations(x_t), _relations(x_s)
        distance, angle = _huber(d_s - d_t).mean(), _huber(a_s - a_t).mean()
        return LossOut(
            self.distance_weight * distance + self.angle_weight * angle,
            metrics={"distance": distance, "angle": angle},
        )


def _relations(x: Array) -> tuple[Array, Array]:
    """Normalised distances [B, B] and cosines of angles [B, B, B]."""
    x = ops.f32(x)
    b = x.shape[0]
    difference = x[:, None] - x[None, :]  # [B, B, C]
    # Bounded before the root, whose slope at zero (the diagonal, equal examples) is infinite.
    distance = jnp.sqrt(jnp.maximum(jnp.square(difference).sum(axis=-1), 1e-12))
    distance *= 1 - jnp.eye(b)
    direction = ops.l2_normalize(difference)
    cosine = jnp.einsum("ijc,ikc->ijk", direction, direction, precision="highest")
    return distance / (distance.sum() / (b * (b - 1))), cosine


def _huber(d: Array) -> Array:
    size = jnp.abs(d)
    return jnp.where(size < 1, jnp.square(d) / 2, size - 0.5)
