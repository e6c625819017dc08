"""Depthwise convolutions, one filter per channel, as multiply-adds of shifted images.

XLA's grouped convolution is about 50 times slower on CPU. `nn.conv` decides where these are used.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from atkd_jax.types import Array


def value(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """x [..., H, W, C], kernel [k, k', 1, C] -> [..., H', W', C]."""
    taps = kernel.reshape(-1, *(1,) * (x.ndim - 1), kernel.shape[-1])
    views = _views(x, kernel.shape, stride, pad)
    return sum(view * tap for view, tap in zip(views, taps, strict=True))


def input_gradient(g: Array, kernel: Array, shape: tuple[int, ...], stride: int, pad: int) -> Array:
    """Gradient with respect to x, of shape `shape`; g [B, H', W', C]."""
    x = jax.ShapeDtypeStruct(shape, g.dtype)
    transpose = jax.linear_transpose(lambda x: value(x, kernel, stride, pad), x)
    return transpose(g)[0]


def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], stride: int, pad: int) -> Array:
    """Gradient with respect to the kernel, of shape `shape`, summed in float32."""

    # One image at a time: its products stay in the cache, those of a batch do not, and this sum
    # dominates the cost.
    def add(total, image_and_g):
        image, g = image_and_g
        sums = partial(jnp.sum, axis=(0, 1), dtype=jnp.float32)
        return total + jnp.stack([sums(v * g) for v in _views(image, shape, stride, pad)]), None

    zeros = jnp.zeros((shape[0] * shape[1], shape[-1]))
    return jax.lax.scan(add, zeros, (x, g))[0].reshape(shape).astype(x.dtype)


def _views(x: Array, shape: tuple[int, ...], stride: int, pad: int) -> list[Array]:
    """The parts of x [..., H, W, C] that the taps of a kernel see: [..., H', W', C] each."""
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + ((pad, pad), (pad, pad), (0, 0)))
    height, width = (n - k + 1 for n, k in zip(x.shape[-3:-1], shape[:2], strict=True))
    return [
        x[..., i : i + height : stride, j : j + width : stride, :]
        for i in range(shape[0])
        for j in range(shape[1])
    ]
