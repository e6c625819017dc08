"""ResNets for small images: 6n+2 layers in three stages (He et al. 2015, arXiv 1512.03385, §4.2).

A stage begins with one of two shortcuts: "B", a 1x1 convolution with batch norm, as in the networks
of CRD's benchmark (Tian et al. 2020, arXiv 1910.10699), or "A", subsampling with zeros for the new
channels, as in the original.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.types import Array, ModelOut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum before and after the last ReLU."""

    width: int
    stride: int
    shortcut: str = "B"
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        y = conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.width, 3, name="conv2")(y)
        y = norm(name="bn2")(y)
        new = self.width - x.shape[-1]
        if self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        elif new or self.stride > 1:
            x = conv(self.width, 1, self.stride, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x)
        pre = y + x
        return pre, nn.relu(pre)


class ResNetCifar(nn.Module):
    """ResNet-`depth` for small images; signature as in `models.create`.

    Taps of 32x32 images: stem, stage1 32x32, stage2 16x16, stage3 8x8, and every block.

    Attributes:
      depth: 6n+2.
      widths: channels of the stem and of the three stages.
      shortcut: "A" or "B".
    """

    num_classes: int
    depth: int
    widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    shortcut: str = "B"
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        del rng  # no dropout
        block = partial(BasicBlock, shortcut=self.shortcut, dtype=self.dtype, bn_axis=self.bn_axis)
        x = layers.conv(self.widths[0], 3, dtype=self.dtype, name="stem_conv")(image)
        x = layers.batch_norm(train=train, dtype=self.dtype, bn_axis=self.bn_axis, name="stem_bn")(
            x
        )
        x = nn.relu(x)
        feats = {"stem": x}
        blocks = 0
        for stage in (1, 2, 3):
            for i in range((self.depth - 2) // 6):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"stage{stage}_block{i + 1}"
                pre, x = block(self.widths[stage], stride, name=name)(x, train)
                blocks += 1
                feats[f"block{blocks}"] = x
            feats |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        feats["pooled"] = layers.global_avg_pool(x)
        return ModelOut(layers.linear(feats["pooled"], self.num_classes, name="fc"), feats)
