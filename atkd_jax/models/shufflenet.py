"""ShuffleNet V1 and V2 for small images, the students of CRD's benchmark.

V1: Zhang et al. 2018, arXiv 1707.01083; V2: Ma et al. 2018, arXiv 1807.11164; both as in the
benchmark (Tian et al. 2020, arXiv 1910.10699; github HobbitLong/RepDistiller
`models/ShuffleNetv1.py`, `models/ShuffleNetv2.py`): the stem is a 1x1 convolution at stride 1, V1
has a ReLU after its depthwise convolution, and convolutions are initialised as in PyTorch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.nn.conv import value
from atkd_jax.types import Array, ModelOut

# U(-1/sqrt(n), 1/sqrt(n)) with n the fan-in: PyTorch's default.
conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

STEM = 24  # channels
GROUPS = 3  # of V1
BLOCKS = (4, 8, 4)  # in each stage; the first of them has stride 2


def _matrix_products(x: Array, kernel: Array) -> Array:
    B, H, W, C = x.shape
    _, _, c, features = kernel.shape
    x, kernel = x.reshape(B, H, W, C // c, c), kernel.reshape(c, C // c, -1)
    return jnp.einsum("bhwgc,cgd->bhwgd", x, kernel).reshape(B, H, W, features)


@jax.custom_vjp
def pointwise(x: Array, kernel: Array) -> Array:
    """A 1x1 convolution in groups, x [B, H, W, C], kernel [1, 1, C / groups, features].

    The gradient is computed as matrix products, 10 times faster on CPU than XLA's; the forward pass
    stays a convolution, which exporters support.
    """
    return value(x, kernel, 1, 0)


def _forward(x, kernel):
    return pointwise(x, kernel), (x, kernel)


def _backward(residuals, g):
    return jax.vjp(_matrix_products, *residuals)[1](g)


pointwise.defvjp(_forward, _backward)


class PointwiseConv(nn.Module):
    """A 1x1 convolution without bias; each group of features sees its group of channels only."""

    features: int
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (1, 1, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", conv_init, shape)
        return pointwise(x.astype(self.dtype), kernel.astype(self.dtype))


# With the same initialisation.
DepthwiseConv = partial(layers.DepthwiseConv, kernel_init=conv_init)


def shuffle(x: Array, groups: int) -> Array:
    """Interleaves the channels of x [..., C]: the first of each group, the second of each, ..."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def avg_pool(x: Array) -> Array:
    """3x3 average at stride 2 of x [B, H, W, C], padded by 1 with zeros, which count."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.avg_pool(x, window_shape=(3, 3), strides=(2, 2))


class V1Block(nn.Module):
    """1x1 in groups, shuffle, 3x3 depthwise, 1x1 in groups, and a shortcut: the input is added or,
    at stride 2, average-pooled and concatenated. Returns the result before and after the last ReLU.
    """

    channels: int
    stride: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        conv = partial(PointwiseConv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        new = self.channels - x.shape[-1] if self.stride > 1 else self.channels
        groups = 1 if x.shape[-1] == STEM else GROUPS  # too few channels to split
        y = conv(new // 4, groups, name="conv1")(x)
        y = shuffle(nn.relu(norm(name="bn1")(y)), groups)
        y = DepthwiseConv(self.stride, self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(new, GROUPS, name="conv3")(y)
        y = norm(name="bn3")(y)
        pre = y + x if self.stride == 1 else jnp.concatenate([y, avg_pool(x)], axis=-1)
        return pre, nn.relu(pre)


class V2Block(nn.Module):
    """Passes the left half of the channels on, convolves the right half (1x1, 3x3 depthwise, 1x1)
    and shuffles both. At stride 2 both branches see all channels, and the left one has a 3x3
    depthwise and a 1x1 convolution. Returns the result before and after the last ReLU.
    """

    channels: int
    stride: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        half = self.channels // 2
        conv = partial(PointwiseConv, half, dtype=self.dtype)
        depthwise = partial(DepthwiseConv, self.stride, self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        if self.stride == 1:
            left, right = x[..., :half], x[..., half:]
        else:
            left = norm(name="left_bn1")(depthwise(name="left_conv1")(x))
            left = norm(name="left_bn2")(conv(name="left_conv2")(left))
            right = x
        right = nn.relu(norm(name="bn1")(conv(name="conv1")(right)))
        right = norm(name="bn2")(depthwise(name="conv2")(right))
        right = norm(name="bn3")(conv(name="conv3")(right))
        # A left half that is passed on is a ReLU's output: another ReLU does not change it.
        pre = shuffle(jnp.concatenate([left, right], axis=-1), 2)
        return pre, nn.relu(pre)


class ShuffleNet(nn.Module):
    """Three stages of blocks; signature as in `models.create`.

    Taps of 32x32 images: stem 32x32, stage1 16x16, stage2 8x8, stage3 4x4, and every block, all
    after their ReLU. The benchmark's f0..f3 are stem..stage3 and its f4 is pooled, which in V2
    follows the head; its `preact` features are stage1_pre..stage3_pre, which in V2 are shuffled
    here, like the stages, and not there.

    Attributes:
      block: V1Block or V2Block.
      widths: channels of the three stages.
      head: channels of a last 1x1 convolution; None for none.
    """

    num_classes: int
    block: type[nn.Module]
    widths: tuple[int, int, int]
    head: int | None = None
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        del rng  # no dropout
        conv = partial(PointwiseConv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        x = nn.relu(norm(name="stem_bn")(conv(STEM, name="stem_conv")(image)))
        feats = {"stem": x}
        blocks = 0
        for stage, (channels, n) in enumerate(zip(self.widths, BLOCKS, strict=True), 1):
            for i in range(n):
                pre, x = self.block(
                    channels,
                    2 if i == 0 else 1,
                    self.dtype,
                    self.bn_axis,
                    name=f"stage{stage}_block{i + 1}",
                )(x, train)
                blocks += 1
                feats[f"block{blocks}"] = x
            feats |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        if self.head:
            x = nn.relu(norm(name="head_bn")(conv(self.head, name="head_conv")(x)))
        feats["pooled"] = layers.global_avg_pool(x)
        return ModelOut(layers.linear(feats["pooled"], self.num_classes, name="fc"), feats)
