"""Knowledge distillation: soft targets."""

from __future__ import annotations

import dataclasses

import jax

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import POSITIVE, setting
from atkd_jax.types import Array, ModelOut


@dataclasses.dataclass(frozen=True)
class KD(Method):
    """Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

        L = T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T)),    z [B, K]

    The factor T^2 keeps the size of the gradient whatever T. Published weights: CIFAR 0.9 beside
    0.1 of cross-entropy with T = 4; ImageNet 0.5 beside 0.5 with T = 1 (RepDistiller, mdistiller).

    Attributes:
      temperature: T.
    """

    temperature: float = setting(4.0, POSITIVE)

    def init(self, rng, t, s, data):
        taps.check_classes("kd", t, s)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        return LossOut(divergence(t, s, self.temperature).mean())


def divergence(t: ModelOut, s: ModelOut, temperature: float) -> Array:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)) of every example: [B]."""
    log_p_t, log_p_s = (jax.nn.log_softmax(ops.f32(o.logits) / temperature) for o in (t, s))
    return temperature**2 * ops.kl_divergence(log_p_t, log_p_s)
