"""A convolution whose gradients have the layout that XLA's CPU backend is fast at.

XLA's CPU backend has fast convolutions for one layout only: NHWC images and HWIO kernels. The
gradients that JAX derives have other layouts. XLA transposes them, but only outside loops; inside a
loop a kernel's gradient is about 30 times slower. So on CPU both gradients are written in the fast
layout here, with JAX's results; only a 1x1 kernel's gradient is a matrix product instead, which
takes a third of the time or less. Every convolution that is trained should use it:
`nn.Conv(..., conv_general_dilated=conv_cpu_layout)`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from atkd_jax.types import Array

ORDER = ("NHWC", "HWIO", "NHWC")


def conv_cpu_layout(x: Array, kernel: Array, strides: Any, padding: Any, **_: Any) -> Array:
    """For `nn.Conv` with one stride, one padding, no groups and no dilation."""
    return convolution(x, kernel, strides[0], padding[0][0])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """x [B, H, W, C], kernel [k, k', C, D], equal padding on all sides -> [B, H', W', D]."""
    return _plain(x, kernel, stride, pad)


def _plain(x, kernel, stride, pad):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad),) * 2, dimension_numbers=ORDER
    )


def _forward(x, kernel, stride, pad):
    return _plain(x, kernel, stride, pad), (x, kernel)


def _backward(stride, pad, residuals, g):
    return jax.lax.platform_dependent(
        *residuals,
        g,
        cpu=lambda x, kernel, g: (
            input_gradient(g, kernel, x.shape[1:3], stride, pad),
            kernel_gradient(x, g, kernel.shape[:2], stride, pad),
        ),
        default=lambda x, kernel, g: jax.vjp(lambda x, k: _plain(x, k, stride, pad), x, kernel)[1](
            g
        ),
    )


convolution.defvjp(_forward, _backward)


def input_gradient(g: Array, kernel: Array, size: tuple[int, int], stride: int, pad: int) -> Array:
    """Gradient with respect to the input, [B, H, W, C]: a convolution with the flipped kernel.

    Args:
      g: [B, H', W', D], gradient with respect to the output.
      size: (H, W).
    """
    before = [k - 1 - pad for k in kernel.shape[:2]]
    after = [n + pad - stride * (m - 1) - 1 for n, m in zip(size, g.shape[1:3], strict=True)]
    return jax.lax.conv_general_dilated(
        g,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        (1, 1),
        list(zip(before, after, strict=True)),
        lhs_dilation=(stride, stride),
        dimension_numbers=ORDER,
    )


def kernel_gradient(x: Array, g: Array, k: tuple[int, int], stride: int, pad: int) -> Array:
    """Gradient with respect to the kernel, [*k, C, D]: x convolved with g, summed over examples.

    Args:
      x: [B, H, W, C], the input.
      g: [B, H', W', D], gradient with respect to the output.
    """
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
