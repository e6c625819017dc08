"""Attention-based feature distillation: learned weights between teacher and student blocks.

RTK uses the same attention and distances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import WIDTH, setting, whole
from atkd_jax.types import Array, ModelOut, PyTree


@dataclasses.dataclass(frozen=True)
class AFD(Method):
    """Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching
    (Ji, Heo, Park 2021, arXiv 2102.02973), as in the authors' code.

    T teacher blocks t_i and S student blocks s_j, maps of any size:

        q_i    = BN(W_i GAP(t_i))             k_j = relu(BN(W_j GAP(s_j)))              [B, d]
        z_ij   = (<BN(V_i k_j), q_i> + <p_i, p_j>) / sqrt(d)
        a_i    = softmax_j(z_ij)                                                     [B, T, S]
        v(F)   = l2n(vec mean_c F^2), the student's pooled or repeated to t_i's size [B, H_i W_i]
        L      = sum_i mean_b sum_j a_ij mean_{hw} (v(s_j) - v(t_i))^2

    W, V and p are learned; V_i is shared by all student blocks. Published weight: 200 beside 0.9 of
    kd with T = 4 (CIFAR-100, the authors); 50 on ImageNet (PaddleClas).

    Metrics: attention [S, T], the batch's mean.

    Attributes:
      dim: d.
      teacher_stride: take every n-th block of the teacher, from the n-th; 2 for ResNet-110.
    """

    dim: int = setting(128, WIDTH)
    teacher_stride: int = setting(1, whole(1))

    def init(self, rng, t, s, data):
        return init_attention(Attention(self.dim), rng, *self._blocks(t, s))

    def loss(self, extras, t, s, batch, ctx):
        blocks = self._blocks(t, s)
        attention = Attention(self.dim, axis_name=ctx.axis.name)
        a, state = attend(attention, extras.params, extras.state, *blocks)
        per_teacher = jnp.sum(a * distances(*blocks, average_pooled_map), axis=2).mean(axis=0)
        return LossOut(per_teacher.sum(), state, {"attention": a.mean(axis=0).T})

    def _blocks(self, t: ModelOut, s: ModelOut) -> tuple[list[Array], list[Array]]:
        return taps.block_taps("afd", t, s, self.teacher_stride)


class Attention(nn.Module):
    """Attention of teacher blocks to student blocks: T of [B, C_i] and S of [B, C_j], both pooled.

    Attributes:
      dim: d.
      query_relu: a ReLU on the queries too.
      axis_name: the device axis of batch norm.

    Returns:
      a [B, T, S]; the rows, over the student's blocks, sum to one.
    """

    dim: int
    query_relu: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, t: list[Array], s: list[Array]) -> Array:
        d = self.dim
        q = self._embed("query", t)  # [B, T, d]
        if self.query_relu:
            q = nn.relu(q)
        k = nn.relu(self._embed("key", s))  # [B, S, d]
        k = ops.dense(d, len(t) * d, name="bilinear")(k)
        k = ops.batch_norm(self.axis_name, name="bilinear_bn")(k)
        k = k.reshape(*k.shape[:2], len(t), d)  # [B, S, T, d]
        # Xavier's, not truncated.
        positions = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
        p_t = self.param("teacher_positions", positions, (len(t), d))
        p_s = self.param("student_positions", positions, (len(s), d))
        z = jnp.einsum("bjid,bid->bij", k, q, precision="highest")
        z = (z + jnp.matmul(p_t, p_s.T, precision="highest")[None]) * d**-0.5
        return jax.nn.softmax(z)

    def _embed(self, name: str, blocks: list[Array]) -> Array:
        """n of [B, C_i] -> [B, n, d]: every block has its own linear layer and batch norm."""
        embedded = [
            ops.dense(x.shape[-1], self.dim, name=f"{name}{i + 1}")(x) for i, x in enumerate(blocks)
        ]
        # One batch norm over n d features is n batch norms over d.
        return ops.batch_norm(self.axis_name, axis=(1, 2), name=f"{name}_bn")(
            jnp.stack(embedded, axis=1)
        )


def init_attention(attention: Attention, rng: Array, t: list[Array], s: list[Array]) -> Extras:
    """Parameters of an `Attention` (with no device axis) and the state of its batch norms."""
    pooled = [[jnp.zeros((1, x.shape[-1])) for x in blocks] for blocks in (t, s)]
    variables = jax.jit(attention.init)(rng, *pooled)
    return Extras(variables["params"], variables["batch_stats"])


def attend(
    attention: Attention, params: PyTree, state: PyTree, t: list[Array], s: list[Array]
) -> tuple[Array, PyTree]:
    """Attention between blocks [B, H, W, C]: a [B, T, S], and the state of the batch norms."""
    pooled = [[ops.f32(x).mean(axis=(1, 2)) for x in blocks] for blocks in (t, s)]
    variables = {"params": params, "batch_stats": state}
    a, updated = attention.apply(variables, *pooled, mutable=["batch_stats"])
    return a, updated["batch_stats"]


def distances(
    t: list[Array], s: list[Array], resampled_map: Callable[[Array, tuple[int, int]], Array]
) -> Array:
    """mean_{hw} (v(s_j) - v(t_i))^2 of unit activation maps v: [B, T, S].

    Args:
      t, s: blocks [B, H, W, C].
      resampled_map: (a student's block, (h, w)) -> its activation map [B, h, w].
    """

    def unit(activation: Array) -> Array:
        return ops.l2_normalize(activation.reshape(activation.shape[0], -1))

    sizes = {(x.shape[1], x.shape[2]) for x in t}
    v_s = {
        size: jnp.stack([unit(resampled_map(x, size)) for x in s], axis=1) for size in sizes
    }  # (h, w) -> [B, S, hw]
    per_teacher = []
    for x in t:
        v_t = unit(ops.attention_map(x))[:, None]  # [B, 1, hw]
        per_teacher.append(jnp.square(v_s[x.shape[1], x.shape[2]] - v_t).mean(axis=2))
    return jnp.stack(per_teacher, axis=1)


def average_pooled_map(feat: Array, size: tuple[int, int]) -> Array:
    """The activation map mean_c F^2, then average pooling: [B, H, W, C] -> [B, h, w]."""
    activation = ops.attention_map(feat)[..., None]
    return ops.adaptive_avg_pool(activation, size)[..., 0]
