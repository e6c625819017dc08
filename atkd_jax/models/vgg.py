"""VGG for small images (Simonyan & Zisserman 2015, arXiv 1409.1556), with batch norm.

The networks of CRD's benchmark (Tian et al. 2020, arXiv 1910.10699; github HobbitLong/RepDistiller
`models/vgg.py`): a single linear layer follows the convolutions.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.nn.conv import conv_general_dilated
from atkd_jax.types import Array, ModelOut

WIDTHS = (64, 128, 256, 512, 512)


class ConvBlock(nn.Module):
    """A 3x3 convolution with bias and its norm; returns the output before and after its ReLU."""

    width: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        x = nn.Conv(
            self.width,
            (3, 3),
            padding=((1, 1), (1, 1)),
            kernel_init=layers.conv_init,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        pre = layers.batch_norm(train=train, dtype=self.dtype, bn_axis=self.bn_axis, name="bn")(x)
        return pre, nn.relu(pre)


class VGG(nn.Module):
    """VGG with sum(convs) + 1 layers; signature as in `models.create`.

    Taps of 32x32 images: stem 32x32 (the first group of convolutions), stage1 16x16, stage2 8x8,
    stage3 and stage4 4x4, and every convolution as a block; all after their ReLU and before the
    max-pool that follows. The benchmark's f0..f4 are stem..stage4, its f5 is pooled; its `preact`
    features are stage1_pre..stage4_pre.

    Attributes:
      convs: number of convolutions in each of the five groups.
    """

    num_classes: int
    convs: tuple[int, int, int, int, int]
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        del rng  # no dropout
        x = image
        feats = {}
        blocks = 0
        for stage, (width, n) in enumerate(zip(WIDTHS, self.convs, strict=True)):
            # The benchmark's last pooling is for 64x64 images only.
            if 0 < stage < 4 or (stage == 4 and image.shape[1] >= 64):
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for i in range(n):
                name = f"stage{stage}_block{i + 1}"
                pre, x = ConvBlock(width, self.dtype, self.bn_axis, name=name)(x, train)
                blocks += 1
                feats[f"block{blocks}"] = x
            feats |= {f"stage{stage}_pre": pre, f"stage{stage}": x} if stage else {"stem": x}
        feats["pooled"] = layers.global_avg_pool(x)
        logits = layers.linear(
            feats["pooled"],
            self.num_classes,
            name="fc",
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
        )
        return ModelOut(logits, feats)
