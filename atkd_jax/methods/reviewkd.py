"""Knowledge review: the student's deeper stages also learn from the teacher's shallower ones."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.nn.conv import conv_general_dilated
from atkd_jax.ranges import FLAG, WIDTH, setting
from atkd_jax.types import Array, ModelOut


@dataclasses.dataclass(frozen=True)
class ReviewKD(Method):
    """Distilling Knowledge via Knowledge Review (Chen et al. 2021, arXiv 2104.09044).

    Levels are the stages that both networks have and the pooled features as a 1x1 map. From the
    deepest to the shallowest, the student's x_l is fused with the deeper levels (`Review`):

        y_l = g_1 BN(conv1x1(x_l)) + g_2 y_{l+1},    g = sigmoid(conv1x1([.., y_{l+1}]))
        L   = sum_l HCL(BN(conv3x3(y_l)), F_t^l)

    with `hierarchical_context_loss`. Published weights for CIFAR (mdistiller): 0.6 to 8 by pair,
    with a warm-up over 20 epochs (`warmup_epochs` of the term); ImageNet: 1 for ResNet-34 ->
    ResNet-18 and 8 for ResNet-50 -> MobileNetV1 (there with max_mid_channels = 256).

    Attributes:
      student_pre: use the student's stages before their activation, as on ImageNet. The teacher's
        always are.
      max_mid_channels: y has as many channels as the student's pooled features, at most this many.
    """

    student_pre: bool = setting(False, FLAG)
    max_mid_channels: int = setting(512, WIDTH)

    def init(self, rng, t, s, data):
        targets, x = jax.eval_shape(self._levels, t, s)
        small = [jnp.zeros((1, *level.shape[1:])) for level in x]
        variables = jax.jit(self._review(targets, x, axis_name=None).init)(rng, small)
        return Extras(variables["params"], variables["batch_stats"])

    def loss(self, extras, t, s, batch, ctx):
        targets, x = self._levels(t, s)
        outs, updated = self._review(targets, x, ctx.axis.name).apply(
            {"params": extras.params, "batch_stats": extras.state}, x, mutable=["batch_stats"]
        )
        losses = (
            hierarchical_context_loss(out, target)
            for out, target in zip(outs, targets, strict=True)
        )
        loss = sum(losses, start=jnp.zeros(()))
        return LossOut(loss, updated["batch_stats"])

    def _levels(self, t: ModelOut, s: ModelOut) -> tuple[list[Array], list[Array]]:
        """Maps of the teacher and of the student, shallowest first, in float32."""
        stages = min(taps.stage_names(t.feats), taps.stage_names(s.feats), key=len)
        taps.tap_pairs("reviewkd", t, s, (*stages, "pooled"))

        def levels(out: ModelOut, pre: bool) -> list[Array]:
            # A stage that ends without an activation has no separate "_pre" tap.
            maps = [
                out.feats.get(f"{stage}_pre" if pre else stage, out.feats[stage])
                for stage in stages
            ]
            return [ops.f32(x) for x in (*maps, out.feats["pooled"][:, None, None])]

        return levels(t, True), levels(s, self.student_pre)

    def _review(self, targets: list[Array], x: list[Array], axis_name: str | None) -> Review:
        mid = min(self.max_mid_channels, x[-1].shape[-1])
        return Review(tuple(target.shape[1:] for target in targets), mid, axis_name)


class Review(nn.Module):
    """The student's levels, fused from the deepest up: maps x_l -> maps of the given shapes.

    Attributes:
      shapes: (H, W, C) of the teacher's levels, shallowest first as everything here.
      mid: channels of y.
      axis_name: the device axis of batch norm.
    """

    shapes: tuple[tuple[int, ...], ...]
    mid: int
    axis_name: str | None

    @nn.compact
    def __call__(self, levels: list[Array]) -> list[Array]:
        outs, y = [], None
        for i in reversed(range(len(levels))):
            h, w, c = self.shapes[i]
            x = self._conv_bn(f"level{i + 1}_in", self.mid, 1, levels[i])
            if y is not None:
                y = nearest_resize(y, x.shape[1:3])
                both = jnp.concatenate([x, y], axis=-1)
                g = nn.sigmoid(ops.dense(2 * self.mid, 2, name=f"level{i + 1}_gates")(both))
                x = g[..., :1] * x + g[..., 1:] * y
            y = nearest_resize(x, (h, w))
            outs.append(self._conv_bn(f"level{i + 1}_out", c, 3, y))
        return outs[::-1]

    def _conv_bn(self, name: str, c_out: int, kernel: int, x: Array) -> Array:
        conv = nn.Conv(
            c_out,
            (kernel, kernel),
            padding=kernel // 2,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "uniform"),
            conv_general_dilated=conv_general_dilated,
            name=f"{name}_conv",
        )
        return ops.batch_norm(self.axis_name, name=f"{name}_bn")(conv(x))


def hierarchical_context_loss(a: Array, b: Array) -> Array:
    """How two maps [B, H, W, C] differ on several scales, coarser ones counting less: [].

        HCL = (MSE(a, b) + 1/2 MSE(pool_4) + 1/4 MSE(pool_2) + 1/8 MSE(pool_1)) / 1.875

    with average pooling to 4x4, 2x2 and 1x1. Scales not smaller than the map are left out, those
    that remain weigh 1/2, 1/4, ... in turn, and the divisor is the sum of the weights.
    """
    weight = total = 1.0
    loss = jnp.square(a - b).mean()
    for size in (4, 2, 1):
        if size < min(a.shape[1:3]):
            weight /= 2
            total += weight
            # Pooling is linear.
            pooled = ops.adaptive_avg_pool(a - b, (size, size))
            loss += weight * jnp.square(pooled).mean()
    return loss / total


def nearest_resize(x: Array, size: tuple[int, ...]) -> Array:
    """[B, H, W, C] -> [B, h, w, C]: row i is the row floor(i H / h), columns alike, as PyTorch."""
    for axis, out in zip((1, 2), size, strict=True):
        n = x.shape[axis]
        if out % n == 0:
            x = jnp.repeat(x, out // n, axis=axis)
        else:
            x = jnp.take(x, np.arange(out) * n // out, axis=axis)
    return x
