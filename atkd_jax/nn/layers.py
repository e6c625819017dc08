"""The layers that all networks share, with PyTorch's padding, statistics and initialisation.

Images and features are NHWC. `dtype` is the compute dtype; parameters and batch statistics are
always float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import ops
from atkd_jax.nn.batch_norm import BatchNorm
from atkd_jax.nn.conv import conv_general_dilated, convolution
from atkd_jax.nn.platform import cpu_or_default
from atkd_jax.types import Array


def conv_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """N(0, 2 / (k^2 C_out)), not truncated: He et al. 2015, arXiv 1502.01852, with fan-out.

    The numbers of Flax's `variance_scaling(2.0, "fan_out", "normal")`, drawn in one dimension: on
    CPU the compiler unrolls loops over the kernel's small dimensions, which takes seconds.
    """
    size = math.prod(shape)
    scale = jnp.sqrt(jnp.array(2.0 * shape[-2] / size, dtype))
    return (jax.random.normal(key, (size,), dtype) * scale).reshape(shape)


def conv(features: int, kernel: int, stride: int = 1, *, dtype: DTypeLike, name: str) -> nn.Conv:
    """A `kernel` x `kernel` convolution without bias, with equal padding on both sides.

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
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def batch_norm(*, train: bool, dtype: DTypeLike, bn_axis: str | None, name: str) -> BatchNorm:
    """Batch normalisation over all axes but the channels.

    Training uses the batch's statistics, averaged over the device axis `bn_axis` if given;
    evaluation uses the running ones.
    """
    return BatchNorm(use_running_average=not train, axis_name=bn_axis, dtype=dtype, name=name)


def linear(
    x: Array,
    features: int,
    *,
    name: str,
    kernel_init: Callable[..., Array] | None = None,
    bias_init: Callable[..., Array] | None = None,
) -> Array:
    """The classifier, [B, C] -> [B, features], always in float32.

    Weights and biases are initialised as in PyTorch's Linear, U(-1/sqrt(C), 1/sqrt(C)), unless
    `kernel_init` or `bias_init` is given.
    """
    uniform = ops.torch_uniform_init(x.shape[-1])
    return nn.Dense(
        features,
        dtype=jnp.float32,
        kernel_init=kernel_init or uniform,
        bias_init=bias_init or uniform,
        name=name,
    )(x)


def max_pool(x: Array) -> Array:
    """3x3 max-pool at stride 2, padded by 1, of a ReLU's output x [B, H, W, C].

    As x >= 0, zero padding equals padding with -inf, and it survives export: padding inside the
    pooling breaks int8 TFLite and is dropped by the ONNX exporter, which also needs the keywords.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


def global_avg_pool(x: Array) -> Array:
    """[B, H, W, C] -> [B, C], float32."""
    # Without the barrier, XLA for CPU gives the convolutions before a sum to YNNPACK, too.
    x = cpu_or_default(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def dropout(x: Array, rng: Array, rate: float) -> Array:
    """Zeroes a fraction `rate` of x [B, C] and rescales the rest; `rng` holds B keys."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(rng)
    return jnp.where(keep, x / (1 - rate), 0.0)


class DepthwiseConv(nn.Module):
    """A 3x3 depthwise convolution without bias, padded by 1.

    Attributes:
      stride: 1 or 2.
    """

    stride: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Array] = conv_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, x.shape[-1]))
        return convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, 1)
