"""Wide residual networks, WRN-d-k (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import layers
from atkd_jax.types import Array, ModelOut


class WideBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + shortcut: pre-activation.

    Returns the first batch norm's output, which completes the previous block, and the sum.
    """

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.batch_norm, train=train, dtype=self.dtype, bn_axis=self.bn_axis)
        pre = norm(name="bn1")(x)
        y = nn.relu(pre)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, name="shortcut_conv")(y)
        y = conv(self.width, 3, self.stride, name="conv1")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(self.width, 3, name="conv2")(y)
        return pre, x + y


class WideResNet(nn.Module):
    """WRN-`depth`-`widen` for small images, without dropout; signature as in `models.create`.

    Taps of 32x32 images: stem, the first convolution's output; stage1 32x32, stage2 16x16 and
    stage3 8x8, the sums that end a group; their `_pre` twins, the same after the batch norm that
    follows; and every block's output after that batch norm and its ReLU.

    Attributes:
      depth: 6n+4.
      widen: multiplies the widths 16, 32, 64.
    """

    num_classes: int
    depth: int
    widen: int
    dtype: DTypeLike = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False, rng: Array | None = None) -> ModelOut:
        del rng  # no dropout
        block = partial(WideBlock, dtype=self.dtype, bn_axis=self.bn_axis)
        x = layers.conv(16, 3, dtype=self.dtype, name="stem_conv")(image)
        feats = {"stem": x}
        blocks = 0
        for stage in (1, 2, 3):
            for i in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"stage{stage}_block{i + 1}"
                pre, x = block(self.widen * 8 * 2**stage, stride, name=name)(x, train)
                if blocks:
                    feats[f"block{blocks}"] = nn.relu(pre)
                if stage > 1 and i == 0:
                    feats[f"stage{stage - 1}_pre"] = pre
                blocks += 1
            feats[f"stage{stage}"] = x
        pre = layers.batch_norm(
            train=train, dtype=self.dtype, bn_axis=self.bn_axis, name="final_bn"
        )(x)
        x = nn.relu(pre)
        feats |= {"stage3_pre": pre, f"block{blocks}": x, "pooled": layers.global_avg_pool(x)}
        logits = layers.linear(
            feats["pooled"], self.num_classes, name="fc", bias_init=nn.initializers.zeros
        )
        return ModelOut(logits, feats)
