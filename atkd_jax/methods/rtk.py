"""Representative teacher keys: AFD restricted to teacher blocks with concentrated attention."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.afd import (
    Attention,
    attend,
    average_pooled_map,
    distances,
    init_attention,
)
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.methods.period_mean import PeriodMean
from atkd_jax.nn import ops
from atkd_jax.ranges import DECAY, FLAG, NOT_NEGATIVE, WIDTH, number, one_of, setting, whole
from atkd_jax.types import Array, ModelOut, PyTree

MEAN, FIXED, RATIO = "mean", "fixed", "ratio"
PER_SAMPLE = "per_sample"
AVERAGE, SOFTPOOL, SOFTPOOL_MAP = "average", "softpool", "softpool_map"


@dataclasses.dataclass(frozen=True)
class RTK(Method):
    """Representative Teacher Keys for Knowledge Distillation Model Compression Based on Attention
    Mechanism for Image Classification (Yang, Kao, Huang 2022, arXiv 2206.12788).

    With the attention a [B, T, S] and the unit maps v of AFD (see `afd`):

        score_i = mean of the k largest entries of mean_b a_i                             [T]
        r_i     = 1 if score_i >= mean_i score_i, else 0: t_i is a representative key     [T]
        L       = sum_i r_i mean_b sum_j a_ij mean_{hw} (v(SoftPool(s_j)) - v(t_i))^2

    A row of a sums to one, so a score is high where a teacher block attends to few student blocks.
    r has no gradient: it masks keys, which learn through a. The best key is always selected. The
    authors published no code; what the paper leaves open follows AFD's code (batch norms, squared
    distances, the maps) or the fields below, whose defaults are the recommended reading.
    Weight: AFD's, 200 beside 0.9 of kd with T = 4; the paper gives none.

    Metrics: representative_keys, how many are selected, and attention [S, T], the batch's mean.

    Attributes:
      dim: d of the attention.
      teacher_stride: take every n-th block of the teacher, from the n-th; 2 for ResNet-110.
      query_relu: a ReLU on the queries, as the paper writes; AFD's code has one on the keys only.
      top_k: k; 0 means a third of the student's blocks, one stage's worth of three.
      select_on: "mean", the k largest entries of the batch's mean attention, or "per_sample", the
        mean over the batch of every example's k largest. At the start the mean attention is nearly
        uniform and that of one example is not, so the two differ.
      ema: decay of an average over optimiser steps of the attention that keys are selected on;
        0: only that of the current step.
      threshold: "mean" of the scores; "fixed", threshold_factor / S, S student blocks; or "ratio",
        the keep_ratio T highest scores.
      threshold_factor: of threshold="fixed"; 0 selects all.
      keep_ratio: of threshold="ratio".
      rescale: multiply the loss by T / sum_i r_i, so that its size is AFD's.
      select_warmup: optimiser steps during which all teacher blocks are used. Blocks that are not
        selected get no gradient through the attention, so an early selection tends to persist.
      resample: how a student's map is resized to the teacher's: "softpool" of the features before
        they are squared, "softpool_map" of the activation map mean_c F^2, or "average" of that map
        as in AFD. Maps that are too small grow by repetition.
      softpool_exact_gradient: differentiate SoftPool's weights, too; see `soft_pool`.
    """

    dim: int = setting(128, WIDTH)
    teacher_stride: int = setting(1, whole(1))
    query_relu: bool = setting(False, FLAG)
    top_k: int = setting(0, whole(0))
    select_on: str = setting(MEAN, one_of(MEAN, PER_SAMPLE))
    ema: float = setting(0.0, DECAY)
    threshold: str = setting(MEAN, one_of(MEAN, FIXED, RATIO))
    threshold_factor: float = setting(1.2, NOT_NEGATIVE)
    keep_ratio: float = setting(0.5, number("(0, 1]"))
    rescale: bool = setting(False, FLAG)
    select_warmup: int = setting(0, whole(0))
    resample: str = setting(SOFTPOOL, one_of(AVERAGE, SOFTPOOL, SOFTPOOL_MAP))
    softpool_exact_gradient: bool = setting(False, FLAG)

    def init(self, rng, t, s, data):
        blocks_t, blocks_s = self._blocks(t, s)
        n_s = len(blocks_s)
        if not 0 <= self.top_k <= n_s:
            raise UserError(
                f"rtk: top_k must be in 0..{n_s}, the student's blocks, not {self.top_k}"
            )
        params, batch_stats = init_attention(
            Attention(self.dim, self.query_relu), rng, blocks_t, blocks_s
        )
        shape = len(blocks_t), n_s
        state = {
            "batch_stats": batch_stats,
            "attention": jnp.zeros(shape, jnp.float32),  # averaged over the steps before
            "step_attention": PeriodMean.zeros(shape),
        }
        return Extras(params, state)

    def loss(self, extras, t, s, batch, ctx):
        blocks = self._blocks(t, s)
        attention = Attention(self.dim, self.query_relu, ctx.axis.name)
        a, batch_stats = attend(attention, extras.params, extras.state["batch_stats"], *blocks)
        before, now = self._averages(extras.state, ctx.axis.mean(self._example_mean(a)), ctx.step)
        # Corrects the bias of an average that starts at zero.
        average = self._averaged(before, now) / (1 - self.ema ** (ctx.step + 1.0))
        r = self.representative(average)
        r = jnp.where(ctx.step < self.select_warmup, 1.0, r)  # [T]

        per_teacher = jnp.sum(a * distances(*blocks, self._resampled_map()), axis=2).mean(axis=0)
        loss = jnp.sum(r * per_teacher)
        if self.rescale:
            loss *= r.size / r.sum()
        state = {"batch_stats": batch_stats, "attention": before, "step_attention": now}
        metrics = {"representative_keys": r.sum(), "attention": a.mean(axis=0).T}
        return LossOut(loss, state, metrics)

    def representative(self, attention: Array) -> Array:
        """Which teacher blocks are representative: attention [T, S] -> 0. or 1. [T], never all 0.

        A constant to differentiation.
        """
        n_t, n_s = attention.shape
        k = self.top_k or max(1, round(n_s / 3))
        score = jax.lax.top_k(jax.lax.stop_gradient(attention), k)[0].mean(axis=1)  # [T]
        if self.threshold == MEAN:
            tau: Array | float = score.mean()
        elif self.threshold == FIXED:
            tau = self.threshold_factor / n_s
        else:
            tau = jax.lax.top_k(score, max(1, round(self.keep_ratio * n_t)))[0][-1]
        # Treats equal scores alike despite rounding.
        tau = jnp.minimum(tau, score.max()) * (1 - 1e-6)
        return (score >= tau).astype(jnp.float32)

    def _example_mean(self, a: Array) -> Array:
        """The attention that keys are selected on, over these examples: [B, T, S] -> [T, S]."""
        a = jax.lax.stop_gradient(a)
        if self.select_on == PER_SAMPLE:
            # The k largest entries of this mean are the means of the examples' k largest.
            a = jnp.sort(a, axis=2, descending=True)
        return a.mean(axis=0)

    def _averages(self, state: PyTree, a: Array, step: Array | int) -> tuple[Array, PeriodMean]:
        """The average [T, S] over the steps before, and the mean of this step so far."""
        before, previous = state["attention"], state["step_attention"]
        complete = previous.is_complete(step)
        before = jnp.where(complete, self._averaged(before, previous), before)
        return before, previous.add(step, a)

    def _averaged(self, before: Array, now: PeriodMean) -> Array:
        return self.ema * before + (1 - self.ema) * now.mean

    def _resampled_map(self):
        return {
            SOFTPOOL: partial(
                soft_pooled_features_map, exact_gradient=self.softpool_exact_gradient
            ),
            SOFTPOOL_MAP: partial(soft_pooled_map, exact_gradient=self.softpool_exact_gradient),
            AVERAGE: average_pooled_map,
        }[self.resample]

    def _blocks(self, t: ModelOut, s: ModelOut) -> tuple[list[Array], list[Array]]:
        return taps.block_taps("rtk", t, s, self.teacher_stride)


def soft_pooled_features_map(feat: Array, size: tuple[int, int], exact_gradient: bool) -> Array:
    """SoftPool, then the activation map mean_c F^2: [B, H, W, C] -> [B, h, w]."""
    return ops.attention_map(soft_pool(feat, size, exact_gradient))


def soft_pooled_map(feat: Array, size: tuple[int, int], exact_gradient: bool) -> Array:
    """The activation map mean_c F^2, then SoftPool: [B, H, W, C] -> [B, h, w]."""
    return soft_pool(ops.attention_map(feat)[..., None], size, exact_gradient)[..., 0]


def soft_pool(x: Array, size: tuple[int, int], exact_gradient: bool = False) -> Array:
    """[B, H, W, C] -> [B, h, w, C], each channel's mean weighted by its own exponential.

        SP(a) = sum_{i in R} w_i a_i,    w_i = exp(a_i) / sum_{j in R} exp(a_j)

    SoftPool (Stergiou et al. 2021, arXiv 2101.00440), with the regions R of `adaptive_avg_pool`, so
    that a map which grows takes the nearest neighbour wherever H divides h.

    Args:
      x: the map.
      size: (h, w).
      exact_gradient: differentiate the weights too. The authors' kernel takes them as constants.
    """
    x, inside = _regions(ops.f32(x), 1, size[0])  # [B, h, I, W, C], [h, I]
    x, inside_w = _regions(x, 3, size[1])  # [B, h, I, w, J, C], [w, J]
    inside = inside[:, :, None, None] & inside_w[None, None]
    w = jax.nn.softmax(x, axis=(2, 4), where=inside[None, ..., None])
    if not exact_gradient:
        w = jax.lax.stop_gradient(w)
    return jnp.sum(w * x, axis=(2, 4))


def _regions(x: Array, axis: int, out: int) -> tuple[Array, np.ndarray]:
    """Splits an axis into the regions of adaptive pooling, padded to the longest of them.

    Returns:
      the array with [out, longest] in place of the axis, and which entries are real.
    """
    n = x.shape[axis]
    start, stop = np.arange(out) * n // out, -(-np.arange(1, out + 1) * n // out)
    index = start[:, None] + np.arange(max(stop - start))[None]
    inside = index < stop[:, None]
    if n % out == 0:
        return x.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), inside
    return jnp.take(x, np.minimum(index, n - 1), axis=axis), inside
