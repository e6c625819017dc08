"""Geometric transforms of one image [H, W, 3] with given parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from atkd_jax.types import Array

PAD_MODES = {"zero": "constant", "reflect": "reflect"}  # our name -> NumPy's


def crop(image: Array, offset: Array, pad: int, pad_mode: str = "zero") -> Array:
    """Pads by `pad` on all sides and crops the original size at `offset` = (row, column)."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), PAD_MODES[pad_mode])
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def rotate(image: Array, degrees: Array) -> Array:
    """Rotates [H, W, 3] floats counter-clockwise about the centre, onto black.

    Bilinear, with Pillow's conventions (`Image.rotate(degrees, BILINEAR)`): a pixel whose source
    lies outside the image is black, one within half a pixel of the edge takes the edge's value.
    """
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    return warp(image, jnp.array([[cos, -sin], [sin, cos]]), jnp.zeros(2))


def warp(image: Array, matrix: Array, shift: Array) -> Array:
    """Resamples [H, W, 3] floats bilinearly under an affine map from output to input pixels.

    Args:
      matrix: [2, 2]; the output pixel at (x, y), measured from the image's centre, is read at
        matrix @ (x, y) + shift.
      shift: [2], pixels, (x, y).
    """
    height, width, _ = image.shape
    x = jnp.arange(width) - (width - 1) / 2
    y = jnp.arange(height) - (height - 1) / 2
    x, y = jnp.meshgrid(x, y)  # [H, W]
    # Coordinates of the source pixel's centre: 0 is the middle of the first pixel.
    u = matrix[0, 0] * x + matrix[0, 1] * y + shift[0] + (width - 1) / 2
    v = matrix[1, 0] * x + matrix[1, 1] * y + shift[1] + (height - 1) / 2
    inside = (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
    u0, v0 = jnp.floor(u), jnp.floor(v)
    du, dv = (u - u0)[..., None], (v - v0)[..., None]

    def at(row: Array, column: Array) -> Array:
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        return image[row, column]  # [H, W, 3]

    top = (1 - du) * at(v0, u0) + du * at(v0, u0 + 1)
    bottom = (1 - du) * at(v0 + 1, u0) + du * at(v0 + 1, u0 + 1)
    return jnp.where(inside[..., None], (1 - dv) * top + dv * bottom, 0.0)
