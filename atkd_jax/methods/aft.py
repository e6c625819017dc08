"""AFT-KD, a reconstruction: attention-and-feature blocks under losses that balance themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.methods.kd import KD
from atkd_jax.methods.period_mean import PeriodMean
from atkd_jax.nn import ops
from atkd_jax.ranges import NOT_NEGATIVE, POSITIVE, one_of, setting
from atkd_jax.types import Array, ModelOut, PyTree

PREVIOUS, FIRST = "previous", "first"
LOSSES = ("ce", "kl", "afb")


@dataclasses.dataclass(frozen=True)
class AFT(Method):
    """A reconstruction of AFT-KD: Attention and feature transfer based knowledge distillation
    (Yang et al. 2023, Scientific Reports 13:18369).

    Only the abstract was available: "attention-and-feature blocks" of the student are aligned with
    the teacher's block by block, and an "adaptive loss" balances the terms by the rate at which
    each decreases. Everything below is this project's reading of it, and no number of the paper is
    a target.

        A(F)   = H W M / sum_{hw} M,   M = mean_c F^2                                [B, H, W, 1]
        AFB(F) = A(F) F                                                              [B, H, W, C]
        F'_s   = BN(conv1x1(F_s)), to the teacher's shape
        L_AFB  = sum_l mean_b ||AFB(F'_s^l) / ||AFB(F'_s^l)|| - AFB(F_t^l) / ||AFB(F_t^l)|| ||^2
        L      = w_1 CE + w_2 KL + w_3 beta L_AFB,    KL that of kd
        w      = 3 softmax(r / rate_temperature),   r_k = mean of L_k in the last epoch, over that
                 in the epoch before; w = 1 in the first two epochs

    so that a term that decreases more slowly gets more weight. Levels are the stages that both
    networks have; the teacher's side has no parameters, or it could collapse.

    The objective adds CE with weight one, so this method returns the total minus CE: use it with
    weight 1, ce_weight=1 and no kd term. Choose beta per pair of networks such that beta L_AFB is
    about as large as KL in the first epoch: run one epoch and divide the metrics, kl / afb. The
    default was measured that way, 20.5 / 3.3, for ResNet-20 -> ResNet-8 and 10,000 CIFAR-10 images.

    Metrics: kl and afb, which is without beta, and the three weights.

    Attributes:
      beta: of L_AFB, see above.
      temperature: of KL.
      rate: the epoch that the last one is compared with: "previous", the one before, or "first".
      rate_temperature: large values keep the weights near one.
      transfer: "both", or for ablations only the normalised "attention" A or "feature" F.
    """

    beta: float = setting(6.0, NOT_NEGATIVE)
    temperature: float = setting(4.0, POSITIVE)
    rate: str = setting(PREVIOUS, one_of(PREVIOUS, FIRST))
    rate_temperature: float = setting(2.0, POSITIVE)
    transfer: str = setting("both", one_of("both", "attention", "feature"))

    def init(self, rng, t, s, data):
        taps.check_classes("aft", t, s)
        pairs = taps.map_pairs("aft", t, s)
        small = [jnp.zeros((1, *f_s.shape[1:])) for _, f_s in pairs]
        variables = jax.jit(self._adapter(pairs, axis_name=None).init)(rng, small)
        ones = jnp.ones((len(LOSSES),), jnp.float32)
        history = {
            "losses": PeriodMean.zeros(ones.shape),  # of the epoch so far
            "last": ones,  # their means in the last epoch
            "reference": ones,  # and in the epoch that it is compared with
        }
        state = {"batch_stats": variables["batch_stats"], "history": history}
        return Extras(variables["params"], state)

    def loss(self, extras, t, s, batch, ctx):
        ce = ops.cross_entropy(s.logits, batch.label)
        kl = KD(self.temperature).loss(Extras(), t, s, batch, ctx).loss
        afb, batch_stats = self._block_loss(extras, t, s, ctx.axis.name)

        losses = jax.lax.stop_gradient(jnp.stack([ce, kl, afb]))
        epoch = ctx.step // ctx.steps_per_epoch
        history = record(extras.state["history"], losses, epoch, self.rate)
        w = loss_weights(history["last"], history["reference"], self.rate_temperature)
        loss = (w[0] - 1) * ce + w[1] * kl + w[2] * self.beta * afb
        metrics = {"kl": kl, "afb": afb} | {f"weight_{k}": w[i] for i, k in enumerate(LOSSES)}
        return LossOut(loss, {"batch_stats": batch_stats, "history": history}, metrics)

    def _block_loss(
        self, extras: Extras, t: ModelOut, s: ModelOut, axis_name: str | None
    ) -> tuple[Array, PyTree]:
        pairs = taps.map_pairs("aft", t, s)
        adapted, updated = self._adapter(pairs, axis_name).apply(
            {"params": extras.params, "batch_stats": extras.state["batch_stats"]},
            [ops.f32(f_s) for _, f_s in pairs],
            mutable=["batch_stats"],
        )
        losses = (
            jnp.square(self._unit_block(f_s) - self._unit_block(f_t)).sum(axis=(1, 2, 3)).mean()
            for f_s, (f_t, _) in zip(adapted, pairs, strict=True)
        )
        return sum(losses, start=jnp.zeros(())), updated["batch_stats"]

    def _unit_block(self, feat: Array) -> Array:
        """AFB, or the part of it that is transferred, normalised per example."""
        block = {
            "both": attention_and_feature_block,
            "attention": spatial_attention,
            "feature": ops.f32,
        }[self.transfer](feat)
        return ops.l2_normalize(block, axis=(1, 2, 3))

    def _adapter(self, pairs: list[tuple[Array, Array]], axis_name: str | None) -> Adapter:
        return Adapter(tuple(f_t.shape[1:] for f_t, _ in pairs), axis_name)


class Adapter(nn.Module):
    """BN(conv1x1(F)) of every stage, pooled or repeated to the size of `shapes`, (H, W, C)."""

    shapes: tuple[tuple[int, ...], ...]
    axis_name: str | None

    @nn.compact
    def __call__(self, feats: list[Array]) -> list[Array]:
        adapted = []
        for i, (x, (h, w, c)) in enumerate(zip(feats, self.shapes, strict=True)):
            x = ops.adaptive_avg_pool(x, (h, w))
            init = ops.torch_uniform_init(x.shape[-1])
            x = nn.Dense(c, use_bias=False, kernel_init=init, name=f"stage{i + 1}_conv")(x)
            adapted.append(ops.batch_norm(self.axis_name, name=f"stage{i + 1}_bn")(x))
        return adapted


def spatial_attention(feat: Array) -> Array:
    """A = H W M / sum_{hw} M, M = mean_c F^2: [B, H, W, C] -> [B, H, W, 1], one on average."""
    m = ops.attention_map(feat)[..., None]
    return m / jnp.maximum(m.mean(axis=(1, 2), keepdims=True), ops.EPSILON)


def attention_and_feature_block(feat: Array) -> Array:
    """AFB(F) = A(F) F: [B, H, W, C] -> the same shape."""
    return spatial_attention(feat) * ops.f32(feat)


def loss_weights(last: Array, reference: Array, temperature: float) -> Array:
    """n softmax(r / temperature) of the rates r = last / reference of n losses: [n] -> [n]."""
    r = last / jnp.maximum(reference, ops.EPSILON)
    return last.size * jax.nn.softmax(r / temperature)


def record(history: dict[str, Any], losses: Array, epoch: Array | int, rate: str) -> dict[str, Any]:
    """Adds one call's losses [3] to the history; the first call of an epoch completes the last one.

    After the first epoch both means are that epoch's, so that all rates are still one.
    """
    before: PeriodMean = history["losses"]
    last, reference = history["last"], history["reference"]
    complete, is_first = before.is_complete(epoch), before.period == 0
    compared = last if rate == PREVIOUS else reference
    return {
        "losses": before.add(epoch, losses),
        "last": jnp.where(complete, before.mean, last),
        "reference": jnp.where(complete, jnp.where(is_first, before.mean, compared), reference),
    }
