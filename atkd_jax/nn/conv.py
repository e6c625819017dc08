"""Convolutions, computed in the way that each platform is fast at.

Accelerators run XLA's convolutions and the gradients that JAX derives. On CPU the narrow ones, and
those of images smaller than the kernel, are native (native.cc), and the others have gradients in
the one layout that XLA for CPU is fast at, NHWC images and HWIO kernels. JAX derives other layouts,
which XLA transposes only outside loops; inside a loop a kernel's gradient takes 30 times as long.

All have the same results. Every convolution that is trained should be one of these:
`nn.Conv(..., conv_general_dilated=conv_general_dilated)`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.nn import depthwise, native
from atkd_jax.nn.platform import cpu_or_default
from atkd_jax.types import Array

ORDER = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(x: Array, kernel: Array, strides: Any, padding: Any, **_: Any) -> Array:
    """For `nn.Conv` with one stride, one padding and no dilation."""
    return convolution(x, kernel, strides[0], padding[0][0])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """x [B, H, W, C] with kernel [k, k', C, D], or [k, k', 1, C] for one filter per channel.

    Equal padding on all sides. Returns [B, H', W', D or C].
    """
    return value(x, kernel, stride, pad)


def value(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """`convolution` without its gradients, in any number of groups: kernel [k, k', C / g, D]."""
    xla = partial(_xla, stride=stride, pad=pad)
    cpu = partial(_cpu, stride=stride, pad=pad)
    return cpu_or_default(x, kernel, cpu=cpu, default=xla)


def _forward(x, kernel, stride, pad):
    return value(x, kernel, stride, pad), (x, kernel)


def _backward(stride, pad, residuals, g):
    def cpu(x, kernel, g):
        d_x = input_gradient(g, kernel, x.shape, stride, pad)
        return d_x, kernel_gradient(x, g, kernel.shape, stride, pad)

    def xla(x, kernel, g):
        return jax.vjp(partial(_xla, stride=stride, pad=pad), x, kernel)[1](g)

    return cpu_or_default(*residuals, g, cpu=cpu, default=xla)


convolution.defvjp(_forward, _backward)


def _xla(x, kernel, stride, pad):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad),) * 2,
        dimension_numbers=ORDER,
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _cpu(x, kernel, stride, pad):
    B, *sizes, C = x.shape
    sizes = [(n + 2 * pad - kernel.shape[i]) // stride + 1 for i, n in enumerate(sizes)]
    if _is_native(x, kernel.shape):
        return native.call("Convolve", (B, *sizes, kernel.shape[3]), x, kernel, stride, pad)
    if not _is_depthwise(C, kernel.shape):
        return _xla(x, kernel, stride, pad)
    if _is_native_depthwise(x.dtype, kernel.shape):
        return native.call("Depthwise", (B, *sizes, C), x, kernel, stride, pad)
    return depthwise.value(x, kernel, stride, pad)


def _is_native(x: Array, kernel: tuple[int, ...]) -> bool:
    """Whether native.cc computes a convolution, and faster than XLA."""
    *size, c, d = kernel
    # Of images smaller than the kernel XLA's take 20 times as long.
    small = x.shape[1] < size[0] or x.shape[2] < size[1]
    usual = c == x.shape[-1] and size != [1, 1]
    return usual and (small or _is_narrow(kernel)) and _native_takes(x.dtype, d)


def _is_narrow(kernel: tuple[int, ...]) -> bool:
    return max(kernel[2:]) <= 128


def _is_native_gradient(x: Array, g: Array, kernel: tuple[int, ...]) -> bool:
    """Whether native.cc computes a kernel's gradient, and faster than XLA."""
    if kernel[:2] != (1, 1):
        return _is_native(x, kernel) and _is_narrow(kernel)
    many_pixels = math.prod(g.shape[:-1]) >= 4096
    return many_pixels and kernel[2] == x.shape[-1] and _native_takes(x.dtype, kernel[3])


def _native_takes(dtype: Any, features: int) -> bool:
    return dtype == jnp.float32 and features % 16 == 0 and native.available()


def _is_native_depthwise(dtype: Any, kernel: tuple[int, ...]) -> bool:
    return dtype == jnp.float32 and kernel[:2] == (3, 3) and native.available()


def _is_depthwise(channels: int, kernel: tuple[int, ...]) -> bool:
    return kernel[2] == 1 and kernel[3] == channels > 1


def input_gradient(g: Array, kernel: Array, shape: tuple[int, ...], stride: int, pad: int) -> Array:
    """Gradient with respect to the input on CPU, [B, H, W, C].

    Args:
      g: [B, H', W', D], gradient with respect to the output.
      shape: (B, H, W, C).
    """
    k = kernel.shape[:2]
    in_groups = _is_depthwise(shape[-1], kernel.shape)
    flipped = kernel[::-1, ::-1] if in_groups else kernel[::-1, ::-1].swapaxes(2, 3)
    if stride == 1 and k[0] == k[1]:
        return _cpu(g, flipped, 1, k[0] - 1 - pad)
    if in_groups:
        return depthwise.input_gradient(g, kernel, shape, stride, pad)
    if k == (1, 1) and not pad:  # zeros between the pixels
        after = [n - stride * (m - 1) - 1 for n, m in zip(shape[1:3], g.shape[1:3], strict=True)]
        between = [(0, n, stride - 1) for n in after]
        return jax.lax.pad(
            _cpu(g, flipped, 1, 0), np.zeros((), g.dtype), [(0, 0, 0), *between, (0, 0, 0)]
        )
    before = [n - 1 - pad for n in k]
    after = [n + pad - stride * (m - 1) - 1 for n, m in zip(shape[1:3], g.shape[1:3], strict=True)]
    return jax.lax.conv_general_dilated(
        g,
        flipped,
        (1, 1),
        list(zip(before, after, strict=True)),
        lhs_dilation=(stride, stride),
        dimension_numbers=ORDER,
    )


def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], stride: int, pad: int) -> Array:
    """Gradient with respect to the kernel on CPU, of its shape: x convolved with g, summed over
    examples.

    Args:
      x: [B, H, W, C], the input.
      g: [B, H', W', D], gradient with respect to the output.
      shape: of the kernel.
    """
    k = shape[:2]
    if _is_native_gradient(x, g, shape):
        return native.call("KernelGradient", shape, x, g, stride, pad)
    if k == (1, 1) and stride == 1 and _is_native_gradient(g, x, (1, 1, *shape[:1:-1])):
        return native.call("KernelGradient", (1, 1, *shape[:1:-1]), g, x, 1, 0).swapaxes(2, 3)
    if _is_depthwise(x.shape[-1], shape):
        if _is_native_depthwise(x.dtype, shape):
            return native.call("DepthwiseKernelGradient", shape, x, g, stride, pad)
        return depthwise.kernel_gradient(x, g, shape, stride, pad)
    if k == (1, 1) and not pad:
        x = x[:, ::stride, ::stride]
        return jax.lax.dot_general(x, g, (((0, 1, 2), (0, 1, 2)), ((), ())))[None, None]
    full = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),  # [C, H, W, B]
        g.transpose(1, 2, 0, 3),  # [H', W', B, D]
        (1, 1),
        ((pad, pad),) * 2,
        rhs_dilation=(stride, stride),
        dimension_numbers=ORDER,
    )  # [C, k.., k.., D]: larger than k where a stride skips the last rows
    return full[:, : k[0], : k[1]].transpose(1, 2, 0, 3)
