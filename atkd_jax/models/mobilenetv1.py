"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861)."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.types import Array, ModelOut

# Table 1 of the paper: channels and stride of every depthwise-separable block, stage by stage.
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


class SeparableBlock(nn.Module):
    """3x3 depthwise and 1x1 convolution; returns the output before and after its ReLU."""

    channels: int
    stride: int
    dtype: DTypeLike
    bn_axis: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        x = layers.DepthwiseConv(self.stride, dtype=self.dtype, name="depthwise_conv")(x)
        x = nn.relu(norm(name="depthwise_bn")(x))
        x = layers.conv(self.channels, 1, dtype=self.dtype, name="pointwise_conv")(x)
        pre = norm(name="pointwise_bn")(x)
        return pre, nn.relu(pre)


class MobileNetV1(nn.Module):
    """MobileNetV1 at width 1, the student of the "ResNet-50 to MobileNet" rows on ImageNet.

    Signature as in `models.create`. Taps of 224x224 images: stem 112x112, stage1 56x56, stage2
    28x28, stage3 14x14, stage4 7x7, and every block.

    Attributes:
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        del rng  # no dropout
        x = layers.conv(32, 3, 2, dtype=self.dtype, name="stem_conv")(image)
        x = layers.batch_norm(train=train, dtype=self.dtype, bn_axis=self.bn_axis, name="stem_bn")(
            x
        )
        x = nn.relu(x)
        feats = {"stem": x}
        blocks = 0
        for stage, shapes in enumerate(STAGES, 1):
            for i, (channels, stride) in enumerate(shapes):
                pre, x = SeparableBlock(
                    channels,
                    stride,
                    self.dtype,
                    self.bn_axis,
                    name=f"stage{stage}_block{i + 1}",
                )(x, train)
                blocks += 1
                feats[f"block{blocks}"] = x
            feats |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        feats["pooled"] = layers.global_avg_pool(x)
        return ModelOut(layers.linear(feats["pooled"], self.num_classes, name="fc"), feats)
