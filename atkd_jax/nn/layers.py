"""The layers that all networks share, with PyTorch's padding, statistics and initialisation.

Images and features are NHWC. `dtype` is the compute dtype; parameters and batch statistics are
always float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.nn import ops
from atkd_jax.nn.batch_norm import BatchNorm
from atkd_jax.nn.conv import conv_cpu_layout
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
        conv_general_dilated=conv_cpu_layout,
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
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def dropout(x: Array, rng: Array, rate: float) -> Array:
    """Zeroes a fraction `rate` of x [B, C] and rescales the rest; `rng` holds B keys."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(rng)
    return jnp.where(keep, x / (1 - rate), 0.0)


# (x [B, H, W, C], kernel [3, 3, 1, C], stride) -> [B, ceil(H / stride), ceil(W / stride), C]
Depthwise = Callable[[Array, Array, int], Array]


def depthwise_grouped(x: Array, kernel: Array, stride: int) -> Array:
    """One 3x3 filter per channel as a convolution with C groups."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifts(x: Array, stride: int) -> list[Array]:
    """The nine views of x [..., H, W, C] that a 3x3 kernel sees: [..., H', W', C] each."""
    height, width = x.shape[-3:-1]
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + ((1, 1), (1, 1), (0, 0)))
    return [
        x[..., i : i + height : stride, j : j + width : stride, :]
        for i in range(3)
        for j in range(3)
    ]


def _shift_add(x: Array, kernel: Array, stride: int) -> Array:
    taps = kernel.reshape(9, 1, 1, 1, -1)
    return sum(view * tap for view, tap in zip(_shifts(x, stride), taps, strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_shifted(x: Array, kernel: Array, stride: int) -> Array:
    """The same convolution as nine multiply-adds of shifted images."""
    return _shift_add(x, kernel, stride)


def _forward(x, kernel, stride):
    return _shift_add(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
    x, kernel = residuals

    # One image at a time: its nine products stay in the cache, those of a batch do not, and this
    # sum dominates the cost.
    def add(total, image_and_g):
        image, g = image_and_g
        products = [
            jnp.sum(view * g, axis=(0, 1), dtype=jnp.float32) for view in _shifts(image, stride)
        ]
        return total + jnp.stack(products), None

    d_kernel, _ = jax.lax.scan(add, jnp.zeros((9, x.shape[-1])), (x, g))
    (d_x,) = jax.linear_transpose(lambda x: _shift_add(x, kernel, stride), x)(g)
    return d_x, d_kernel.reshape(kernel.shape).astype(kernel.dtype)


depthwise_shifted.defvjp(_forward, _backward)


def depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """Shifted on CPU, where XLA's grouped convolution is about 50 times slower; else grouped."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(depthwise_shifted, stride=stride),
        default=partial(depthwise_grouped, stride=stride),
    )


class DepthwiseConv(nn.Module):
    """A 3x3 depthwise convolution without bias, padded by 1.

    Attributes:
      stride: 1 or 2.
      compute: the implementation; all have the same parameters and results.
    """

    stride: int
    compute: Depthwise = depthwise
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Array] = conv_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, x.shape[-1]))
        return self.compute(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
