"""Decoupled knowledge distillation: separate losses for the target and the other classes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NOT_NEGATIVE, POSITIVE, setting
from atkd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class DKD(Method):
    """Decoupled Knowledge Distillation (Zhao et al. 2022, arXiv 2203.08679).

        p = softmax(z / T),   b = (p_y, 1 - p_y),   q = p over the classes other than y
        L = T^2 mean_b (alpha KL(b_t || b_s) + beta KL(q_t || q_s))

    y is the label. KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_t,y) KL(q_t || q_s): plain distillation
    suppresses the second term where the teacher is confident. Published: weight 1 beside 1 of
    cross-entropy; CIFAR-100 T = 4 and the weight warmed up over 20 epochs, beta 2 to 8 by pair
    (8 for most); ImageNet T = 1, beta 0.5 for ResNet-34 -> ResNet-18 (mdistiller).

    Attributes:
      alpha: weight of the target-class part (TCKD).
      beta: weight of the non-target-class part (NCKD).
      temperature: T.
    """

    needs_hard_labels: ClassVar[bool] = True

    alpha: float = setting(1.0, NOT_NEGATIVE)
    beta: float = setting(8.0, NOT_NEGATIVE)
    temperature: float = setting(4.0, POSITIVE)

    def init(self, rng, t, s, data):
        taps.check_classes("dkd", t, s)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        if batch.label.ndim != 1:
            raise UserError(
                "dkd: needs one class number per example, not class probabilities; "
                "turn mixup and CutMix off"
            )
        T = self.temperature
        target = jax.nn.one_hot(batch.label, s.logits.shape[-1], dtype=bool)  # [B, K]
        b_t, q_t = _decouple(ops.f32(t.logits) / T, target)
        b_s, q_s = _decouple(ops.f32(s.logits) / T, target)
        tckd = T**2 * ops.kl_divergence(b_t, b_s).mean()
        # The target's own entry of q_t has no probability.
        nckd = T**2 * jnp.where(target, 0, jnp.exp(q_t) * (q_t - q_s)).sum(axis=-1).mean()
        return LossOut(self.alpha * tckd + self.beta * nckd, metrics={"tckd": tckd, "nckd": nckd})


def _decouple(z: Array, target: Array) -> tuple[Array, Array]:
    """log b [B, 2], and log q [B, K], whose entry at the target is meaningless."""
    log_sum = jax.nn.logsumexp(z, axis=-1)  # [B]
    log_others = jax.nn.logsumexp(z, axis=-1, where=~target)
    z_target = jnp.where(target, z, 0).sum(axis=-1)
    log_b = jnp.stack([z_target - log_sum, log_others - log_sum], axis=-1)
    return log_b, jnp.where(target, 0, z) - log_others[:, None]
