"""A convolution whose gradients are written the way that XLA's CPU backend is quick at.

XLA has fast code for convolutions on CPU in one order of the axes only: examples first, channels
last, in the kernel inputs before outputs. What JAX writes for gradients has other orders. XLA
reorders them, but outside of loops only: inside, a kernel's gradient is some 30 times slower. So on
CPU both gradients are written in that order here. The results are those of JAX, to the bit; but a
1x1 kernel's gradient is a matrix product, which takes a third of the time or less. Every layer
that convolves in training should use it: `nn.Conv(..., conv_general_dilated=conv_cpu_layout)`.
"""

from __future__ import annotations

from functools import partial

import jax

from atkd_jax.types import Array

ORDER = ("NHWC", "HWIO", "NHWC")


def conv_cpu_layout(x: Array, kernel: Array, strides, padding, **_) -> Array:
    """What `nn.Conv` calls, where it has one stride, one padding, no groups and no holes."""
    return convolution(x, kernel, strides[0], padding[0][0])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """x [B, H, W, C] with kernel [k, k', C, D], padded alike on all sides -> [B, H', W', D]."""
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
    """The gradient by what was convolved, [B, H, W, C]: a convolution with the mirrored kernel.

    Args:
      g: [B, H', W', D], the gradient by the result.
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
    """The gradient by the kernel, [*k, C, D]: x convolved with g, the sum being over examples.

    Args:
      x: [B, H, W, C], what was convolved.
      g: [B, H', W', D], the gradient by the result.
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
    )  # [C, k.., k.., D]: longer than k where a stride has left the last rows out
    return full[:, : k[0], : k[1]].transpose(1, 2, 0, 3)
