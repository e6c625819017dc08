"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) for ImageNet and for small images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.types import Array, ModelOut

# Table 2 of the paper: expansion, channels, blocks of each group.
GROUPS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
# The last group at each resolution ends a stage.
STAGES = {2: "stage1", 3: "stage2", 5: "stage3", 7: "stage4"}


def scaled(channels: int, width: float, divisor: int) -> int:
    """`channels` * `width` rounded to a multiple of `divisor`, at most 10 % below."""
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * wanted else rounded + divisor


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation, and the identity."""

    channels: int
    stride: int
    expansion: int
    expand: bool
    act: Callable[[Array], Array]
    dtype: DTypeLike
    bn_axis: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        y = x
        if self.expand:
            y = conv(self.expansion * x.shape[-1], 1, name="expand_conv")(y)
            y = self.act(norm(name="expand_bn")(y))
        y = layers.DepthwiseConv(self.stride, dtype=self.dtype, name="depthwise_conv")(y)
        y = self.act(norm(name="depthwise_bn")(y))
        y = conv(self.channels, 1, name="project_conv")(y)
        y = norm(name="project_bn")(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.channels else y


class MobileNetV2(nn.Module):
    """MobileNetV2; signature as in `models.create`.

    The defaults are torchvision's ImageNet network. Taps of 224x224 images: stem 112x112, stage1
    56x56 .. stage4 7x7, and every block; none but the stem ends in an activation, so values may be
    negative.

    Attributes:
      width: multiplies all channels except, below 1, the last layer's 1280.
      strides: of the stem and of the seven groups.
      divisor: channels are multiples of it.
      act: relu6 or relu.
      expand_first: adds an expansion layer to the first block, whose expansion is 1.
      dropout: fraction of the pooled features that is dropped in training.
    """

    num_classes: int
    width: float = 1.0
    strides: tuple[int, ...] = (2, 1, 2, 2, 2, 1, 2, 1)
    divisor: int = 8
    act: Callable[[Array], Array] = nn.relu6
    expand_first: bool = False
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        x = conv(scaled(32, self.width, self.divisor), 3, self.strides[0], name="stem_conv")(image)
        x = self.act(norm(name="stem_bn")(x))
        feats = {"stem": x}
        blocks = 0
        for group, (expansion, channels, n) in enumerate(GROUPS, 1):
            for i in range(n):
                x = InvertedResidual(
                    channels=scaled(channels, self.width, self.divisor),
                    stride=self.strides[group] if i == 0 else 1,
                    expansion=expansion,
                    expand=expansion > 1 or self.expand_first,
                    act=self.act,
                    dtype=self.dtype,
                    bn_axis=self.bn_axis,
                    name=f"group{group}_block{i + 1}",
                )(x, train)
                blocks += 1
                feats[f"block{blocks}"] = x
            if group in STAGES:
                feats[STAGES[group]] = x
        x = conv(scaled(1280, max(1.0, self.width), self.divisor), 1, name="head_conv")(x)
        x = self.act(norm(name="head_bn")(x))
        x = feats["pooled"] = layers.global_avg_pool(x)
        if train and rng is not None and self.dropout:
            x = layers.dropout(x, rng, self.dropout)
        logits = layers.linear(
            x,
            self.num_classes,
            name="fc",
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
        )
        return ModelOut(logits, feats)


SMALL_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)

# For 32x32 images, as published with weights in chenyaofo/pytorch-cifar-models: stem and stage1
# 32x32, stage2 16x16, stage3 8x8, stage4 4x4, the sizes of a CIFAR ResNet-50.
MobileNetV2Cifar = partial(MobileNetV2, strides=SMALL_STRIDES)

# The student of CRD's benchmark (Tian et al. 2020, arXiv 1910.10699): stem and stage1 16x16,
# stage2 8x8, stage3 4x4, stage4 2x2 of 32x32 images.
MobileNetV2Half = partial(
    MobileNetV2,
    width=0.5,
    strides=(2, *SMALL_STRIDES[1:]),
    divisor=1,
    act=nn.relu,
    expand_first=True,
    dropout=0.0,
)
