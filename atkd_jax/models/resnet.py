"""ResNet-18, -34 and -50 (He et al. 2015, arXiv 1512.03385), "v1.5": a bottleneck's stride is in
its 3x3 convolution, as in torchvision.

Two stems: ImageNet's (7x7 and max-pool, both at stride 2) and the one for 32x32 images (3x3 at
stride 1, no pooling) of CRD's and AFD's benchmarks.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.types import Array, ModelOut


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; returns the sum before and after its ReLU."""

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        y = conv(self.width, 1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.width, 3, self.stride, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(4 * self.width, 1, name="conv3")(y)
        y = norm(name="bn3")(y)
        if self.stride > 1 or x.shape[-1] != y.shape[-1]:
            x = conv(4 * self.width, 1, self.stride, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x)
        pre = y + x
        return pre, nn.relu(pre)


class ResNet(nn.Module):
    """Four stages of residual blocks; signature as in `models.create`.

    Taps of 224x224 images: stem 112x112 (before the max-pool), stage1 56x56 .. stage4 7x7, and
    every block. With the small stem, of 32x32 images: stem and stage1 32x32 .. stage4 4x4.

    Attributes:
      blocks: number of blocks in each stage.
      block: BasicBlock or Bottleneck.
      small_stem: for 32x32 images.
    """

    num_classes: int
    blocks: tuple[int, int, int, int]
    block: type[nn.Module]
    small_stem: bool = False
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        del rng  # no dropout
        kernel, stride = (3, 1) if self.small_stem else (7, 2)
        x = layers.conv(64, kernel, stride, dtype=self.dtype, name="stem_conv")(image)
        x = layers.batch_norm(train=train, dtype=self.dtype, bn_axis=self.bn_axis, name="stem_bn")(
            x
        )
        x = nn.relu(x)
        feats = {"stem": x}
        if not self.small_stem:
            x = layers.max_pool(x)
        blocks = 0
        for stage, n in enumerate(self.blocks, 1):
            for i in range(n):
                pre, x = self.block(
                    width=32 * 2**stage,
                    stride=2 if stage > 1 and i == 0 else 1,
                    dtype=self.dtype,
                    bn_axis=self.bn_axis,
                    name=f"stage{stage}_block{i + 1}",
                )(x, train)
                blocks += 1
                feats[f"block{blocks}"] = x
            feats |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        feats["pooled"] = layers.global_avg_pool(x)
        return ModelOut(layers.linear(feats["pooled"], self.num_classes, name="fc"), feats)
