"""The layers that every network is made of, with PyTorch's padding, statistics and initial values.

Images and features are NHWC. `dtype` is what a layer computes in; parameters and batch statistics
are float32 always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atkd_jax.types import Array

# N(0, 2 / (k^2 C_out)), not truncated: He et al. 2015, arXiv 1502.01852, by the outputs.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(features: int, kernel: int, stride: int = 1, *, dtype: Any, name: str) -> nn.Conv:
    """A `kernel` x `kernel` convolution without bias, padded alike on both sides.

    'SAME' would pad only the far side at stride 2, which is a different network.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((kernel // 2, kernel // 2),) * 2,
        use_bias=False,
        kernel_init=conv_init,
        dtype=dtype,
        name=name,
    )


def batch_norm(*, train: bool, dtype: Any, bn_axis: str | None, name: str) -> nn.BatchNorm:
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167).

    In training the batch's statistics are averaged over the device axis `bn_axis`, if there is one;
    in evaluation the running ones are used. Momentum 0.9 is PyTorch's 0.1.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=bn_axis if train else None,
        name=name,
    )


def linear(x: Array, features: int, *, name: str, **init: Callable[..., Array]) -> Array:
    """The classifier, [B, C] -> [B, features], in float32 whatever the network computes in.

    Weights and biases start as PyTorch's Linear does, U(-1/sqrt(C), 1/sqrt(C)), unless
    `kernel_init` or `bias_init` says otherwise.
    """
    bound = x.shape[-1] ** -0.5

    def uniform(rng, shape, dtype):
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    init = {"kernel_init": uniform, "bias_init": uniform} | init
    return nn.Dense(features, dtype=jnp.float32, name=name, **init)(x)


def global_avg_pool(x: Array) -> Array:
    """[B, H, W, C] -> [B, C], float32."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
