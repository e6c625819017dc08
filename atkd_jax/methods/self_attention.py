"""AT-KD: multi-head self-attention maps over the positions of a feature map."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.methods.kd import divergence
from atkd_jax.nn import ops
from atkd_jax.ranges import FLAG, NAME, POSITIVE, WIDTH, one_of, setting, tuple_of, whole
from atkd_jax.types import Array

SQRT_D = "sqrt_d"


def attention_maps(
    feat: Array,
    heads: int = 4,
    scale: float | str = 1.0,
    size: tuple[int, int] = (8, 8),
    center: bool = True,
) -> Array:
    """Similarity of the positions of a feature map, by scaled dot-product self-attention.

    The map is average-pooled to `size`, its positions are the tokens X [B, N, C], N = h w, and its
    channels are split among the heads; queries and keys are the tokens themselves:

        A_h = softmax_j(scale <x_i, x_j> / (||x_i|| ||x_j||))

    Args:
      feat: [B, H, W, C].
      heads: must divide C.
      scale: a number, the inverse temperature of the cosines; or "sqrt_d", the literal
        softmax_j(<x_i, x_j> / sqrt(d)) of layer-normalised tokens, d = C / heads.
      size: (h, w).
      center: subtract the mean over an image's positions from its tokens first.

    Returns:
      [B, heads, N, N] float32; rows, the last axis, sum to one.
    """
    b, c = feat.shape[0], feat.shape[-1]
    d = c // heads
    x = ops.adaptive_avg_pool(feat, size)
    if center:
        x -= x.mean(axis=(1, 2), keepdims=True)
    if scale == SQRT_D:
        # The default algorithm, E[x^2] - E[x]^2, cancels where the mean is large.
        x = jax.nn.standardize(x, axis=-1, epsilon=1e-5, algorithm="stable")  # type: ignore[call-arg]  # not in JAX's stub
    x = x.reshape(b, -1, heads, d)  # [B, N, heads, d]
    if scale == SQRT_D:
        factor = d**-0.5
    else:
        factor = float(scale)
        x = ops.l2_normalize(x)
    logits = factor * jnp.einsum("bihd,bjhd->bhij", x, x, precision="highest")
    return jax.nn.softmax(logits)


@dataclasses.dataclass(frozen=True)
class SelfAttention(Method):
    """The attention term of AT-KD, this project's own method (a poster; no paper, no code).

        L   = mean_b KL_b mean_l r_bl,    KL_b without gradient: that of kd, T^2 included
        r_l = sum_{h,i,j} (A_s^l - A_t^l)^2 / sum_{h,i,j} (A_t^l - 1 / N)^2

    `attention_maps` defines A [B, heads, N, N] of every level l. Maps compare positions with
    positions, so channels may differ without an adapter. The poster specifies only "self-attention,
    multi-head, scaled dot product, MSE"; the rest is decided here, by accuracy on validation images
    (docs/atkd.md):

    - Features after a ReLU are all positive, so that all tokens look alike and A is nearly uniform.
      `center` subtracts what the positions of an image have in common.
    - A large scale leaves most entries near zero, where softmax has no gradient. At 1 it is close
      to linear.
    - The squared error depends on N, on the scale, and on how sharp the teacher's map is.
      `relative` divides by the error of a uniform map: 0 is as the teacher's, 1 as bad as uniform.
    - Attention teaches most in the beginning, and may hinder at the end. With `balance` an image
      counts as far as the student's answer to it is still unlike the teacher's.

    Queries and keys are the features themselves: random projections of a frozen teacher are
    arbitrary, and learned ones can make both maps uniform, which minimises the loss and teaches
    nothing. Cosines of centred positions are, but for heads and softmax, the pairwise similarities
    of Liu et al. 2019 (arXiv 1903.04197).

    Metrics: the mean of r over the images for every level, as level1, level2, ...

    Attributes:
      taps: the features to compare; none named: every stage that both networks have.
      heads: parts into which the channels are split; must divide those of both networks.
      scale: of cosines, or "sqrt_d"; see `attention_maps`.
      max_size: larger maps are pooled to max_size x max_size: 8 for CIFAR, 14 for ImageNet. Memory
        is proportional to its fourth power.
      center: see above. Without it, and with a scale of 10, this is the poster's map.
      relative: see above. Without it the poster's squared error, summed over j and over levels and
        averaged over heads and i: r_l = mean_{h,i} sum_j (A_s^l - A_t^l)_ij^2.
      balance: see above. Without it KL_b is 1.
      temperature: of KL_b.
    """

    taps: tuple[str, ...] = setting((), tuple_of(NAME))
    heads: int = setting(4, WIDTH)
    scale: float | str = setting(1.0, POSITIVE | one_of(SQRT_D))
    max_size: int = setting(8, whole(1))
    center: bool = setting(True, FLAG)
    relative: bool = setting(True, FLAG)
    balance: bool = setting(True, FLAG)
    temperature: float = setting(4.0, POSITIVE)

    def init(self, rng, t, s, data):
        for pair in taps.map_pairs("self_attention", t, s, self.taps):
            for role, feat in zip(("teacher", "student"), pair, strict=True):
                if feat.shape[-1] % self.heads:
                    raise UserError(
                        f"self_attention: {feat.shape[-1]} channels of the {role} do not split "
                        f"into {self.heads} heads; set heads to a divisor"
                    )
        if self.balance:
            taps.check_classes("self_attention with balance", t, s)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        errors = []  # of every level, [B]
        for f_t, f_s in taps.map_pairs("self_attention", t, s, self.taps):
            size = self.map_size(f_t, f_s)
            a_t, a_s = (
                attention_maps(f, self.heads, self.scale, size, self.center) for f in (f_t, f_s)
            )
            errors.append(relative_error(a_t, a_s) if self.relative else square_error(a_t, a_s))
        loss = sum(errors, start=jnp.zeros(()))
        if self.relative:
            loss /= len(errors)
        if self.balance:
            loss *= jax.lax.stop_gradient(divergence(t, s, self.temperature))
        metrics = {f"level{i + 1}": error.mean() for i, error in enumerate(errors)}
        return LossOut(loss.mean(), metrics=metrics)

    def map_size(self, f_t: Array, f_s: Array) -> tuple[int, int]:
        """(h, w) at which a pair of [B, H, W, C] features is compared."""
        h, w = ops.smaller_size(f_t, f_s)
        return min(h, self.max_size), min(w, self.max_size)


def square_error(a_t: Array, a_s: Array) -> Array:
    """Summed over j and averaged over heads and i: two maps [B, heads, N, N] -> [B]."""
    return jnp.square(a_s - a_t).sum(axis=-1).mean(axis=(1, 2))


def relative_error(a_t: Array, a_s: Array) -> Array:
    """The square error over that of a uniform map: two maps [B, heads, N, N] -> [B].

    Zero for an image whose teacher's map is uniform, of which nothing can be learned.
    """
    square = jnp.square(a_s - a_t).sum(axis=(1, 2, 3))
    uniform = jnp.square(a_t - 1 / a_t.shape[-1]).sum(axis=(1, 2, 3))
    known = uniform > ops.EPSILON
    return jnp.where(known, square, 0) / jnp.where(known, uniform, 1)
