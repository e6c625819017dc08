"""Augmentation on the device: pure functions of (key, images), jnp throughout.

Every example draws its own parameters from `fold_in(rng, position)`, its place in the global batch,
so that the result does not depend on how the batch is spread over devices. Operations are written
for one image [H, W, 3] with their parameters as arguments and mapped over the batch.

`augment` applies what is asked for in this order: flip, rotation, crop, brightness. All of it acts
on raw pixels; normalisation comes after, so a zero-padded border is black, as in the CIFAR recipe
of RepDistiller (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.types import Array

PAD_MODES = {"zero": "constant", "reflect": "reflect"}
# Which parameter a key is for; new ones go to the end, or old runs change.
ROTATE, CROP, FLIP, BRIGHTNESS = range(4)


@dataclasses.dataclass(frozen=True)
class Augment:
    """What to do to a training image. The default: nothing.

    Attributes:
      pad: pixels added on all four sides before a crop of the original size; both offsets are
        uniform in 0..2*pad.
      pad_mode: "zero" (black) or "reflect" (mirrored without repeating the edge).
      flip: mirror left and right with probability 1/2.
      rotate: largest angle in degrees; the angle is uniform in -rotate..rotate.
      brightness: pixels are multiplied by a factor uniform in 1-brightness..1+brightness and
        clipped.
    """

    pad: int = 0
    pad_mode: str = "zero"
    flip: bool = False
    rotate: float = 0.0
    brightness: float = 0.0

    def __post_init__(self):
        if self.pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode {self.pad_mode!r} is none of {', '.join(PAD_MODES)}")
        if self.pad < 0:
            raise ValueError(f"pad {self.pad} is negative")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate {self.rotate} is not in 0..180 degrees")
        if not 0 <= self.brightness <= 1:
            raise ValueError(f"brightness {self.brightness} is not in 0..1")


def augment(rng: Array, image: Array, position: Array, spec: Augment) -> Array:
    """Augments a batch; with the default `spec` it only scales.

    Args:
      rng: the key of this step, the same on all devices.
      image: [B, H, W, 3] uint8.
      position: [B] int32, each example's place in the global batch.

    Returns:
      [B, H, W, 3] float32 in 0..1.

    Raises:
      ValueError: `reflect` is to mirror more pixels than the image has.
    """
    if spec == Augment():
        return image.astype(jnp.float32) / 255.0
    if spec.pad_mode == "reflect" and spec.pad >= min(image.shape[1:3]):
        raise ValueError(f"pad {spec.pad} is too large to reflect images of {image.shape[1:3]}")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, position)
    return jax.vmap(lambda key, x: _augment_one(key, x, spec))(keys, image)


def _augment_one(key: Array, image: Array, spec: Augment) -> Array:
    """One image [H, W, 3] uint8 -> float32 in 0..1."""
    # The flip first: behind the others XLA on CPU would compute both branches (three times slower).
    if spec.flip:
        image = jnp.where(draw_flip(key), image[:, ::-1], image)
    if spec.rotate:
        image = rotate(image.astype(jnp.float32), draw_angle(key, spec))
    if spec.pad:
        image = crop(image, draw_offset(key, spec), spec.pad, spec.pad_mode)
    image = image.astype(jnp.float32) / 255.0
    if spec.brightness:
        image = jnp.clip(image * draw_factor(key, spec), 0.0, 1.0)
    return image


def draw_angle(key: Array, spec: Augment) -> Array:
    """[] float32, degrees."""
    key = jax.random.fold_in(key, ROTATE)
    return jax.random.uniform(key, (), minval=-spec.rotate, maxval=spec.rotate)


def draw_offset(key: Array, spec: Augment) -> Array:
    """[2] int32: the crop's first row and column in the padded image."""
    return jax.random.randint(jax.random.fold_in(key, CROP), (2,), 0, 2 * spec.pad + 1)


def draw_flip(key: Array) -> Array:
    """[] bool."""
    return jax.random.bernoulli(jax.random.fold_in(key, FLIP))


def draw_factor(key: Array, spec: Augment) -> Array:
    """[] float32."""
    key = jax.random.fold_in(key, BRIGHTNESS)
    return jax.random.uniform(key, (), minval=1 - spec.brightness, maxval=1 + spec.brightness)


def crop(image: Array, offset: Array, pad: int, pad_mode: str = "zero") -> Array:
    """Pads by `pad` on all sides and cuts the original size out at `offset` = (row, column)."""
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), PAD_MODES[pad_mode])
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def rotate(image: Array, degrees: Array) -> Array:
    """Turns [H, W, 3] floats counter-clockwise about the centre; what was outside is black.

    Bilinear, with Pillow's conventions (`Image.rotate(degrees, BILINEAR)`): a pixel whose centre
    comes from outside the image is black, one from within half a pixel of the edge takes the edge.
    """
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    return warp(image, jnp.array([[cos, -sin], [sin, cos]]), jnp.zeros(2))


def warp(image: Array, matrix: Array, shift: Array) -> Array:
    """Samples [H, W, 3] floats at the places that an affine map sends every output pixel to.

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


def normalize(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(image - mean) / std per channel, for [..., 3] floats in 0..1."""
    shape = (1,) * (image.ndim - 1) + (3,)
    mean = np.asarray(mean, np.float32).reshape(shape)
    std = np.asarray(std, np.float32).reshape(shape)
    return (image - mean) / std
