"""AT-KD: multi-head self-attention maps over the positions of a feature map."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NAME, POSITIVE, WIDTH, one_of, setting, tuple_of, whole
from atkd_jax.types import Array

SQRT_D = "sqrt_d"


def attention_maps(
    feat: Array, heads: int = 4, scale: float | str = 10.0, size: tuple[int, int] = (8, 8)
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

    Returns:
      [B, heads, N, N] float32; rows, the last axis, sum to one.
    """
    b, c = feat.shape[0], feat.shape[-1]
    d = c // heads
    x = ops.adaptive_avg_pool(feat, size)
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

        L = sum_l mean_{b,h,i} sum_j (A_s^l - A_t^l)_ij^2,    A [B, heads, N, N]

    `attention_maps` defines A. The poster specifies only "self-attention, multi-head, scaled dot
    product, MSE"; the rest is decided here. Maps compare positions with positions, so channels may
    differ without an adapter. Queries and keys are the features themselves: random projections of a
    frozen teacher are arbitrary, and learned ones can make both maps uniform, which minimises the
    loss and teaches nothing. (Learned projections would have to be trained inside the teacher with
    its own cross-entropy first, which this class does not do.) The squared error is summed over j,
    so that its size does not depend on N. No weight is published; choose one that makes the term
    about as large as the KD term after one epoch.

    Attributes:
      taps: the features to compare; none named: every stage that both networks have.
      heads: parts into which the channels are split; must divide those of both networks.
      scale: of cosines (5 and 20 are reasonable too), or "sqrt_d"; see `attention_maps`.
      max_size: larger maps are pooled to max_size x max_size: 8 for CIFAR, 14 for ImageNet. Memory
        is proportional to its fourth power.
    """

    taps: tuple[str, ...] = setting((), tuple_of(NAME))
    heads: int = setting(4, WIDTH)
    scale: float | str = setting(10.0, POSITIVE | one_of(SQRT_D))
    max_size: int = setting(8, whole(1))

    def init(self, rng, t, s, data):
        for pair in taps.map_pairs("self_attention", t, s, self.taps):
            for role, feat in zip(("teacher", "student"), pair, strict=True):
                if feat.shape[-1] % self.heads:
                    raise UserError(
                        f"self_attention: {feat.shape[-1]} channels of the {role} do not split "
                        f"into {self.heads} heads; set heads to a divisor"
                    )
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        stages = []
        for f_t, f_s in taps.map_pairs("self_attention", t, s, self.taps):
            size = self.map_size(f_t, f_s)
            a_t, a_s = (attention_maps(f, self.heads, self.scale, size) for f in (f_t, f_s))
            stages.append(jnp.square(a_s - a_t).sum(axis=-1).mean())
        return LossOut(sum(stages, start=jnp.zeros(())))

    def map_size(self, f_t: Array, f_s: Array) -> tuple[int, int]:
        """(h, w) at which a pair of [B, H, W, C] features is compared."""
        h, w = ops.smaller_size(f_t, f_s)
        return min(h, self.max_size), min(w, self.max_size)
