"""RandAugment on the device (Cubuk et al. 2019, arXiv 1909.13719), written for one image.

The operations, their ranges and their strengths at magnitude M of 30 are torchvision's; each is
Pillow's operation of that name, with bilinear interpolation and a black surround. All are of three
kinds (a warp, a table of grey levels, a blend with another image), so that one pass of each with
the right parameters serves every operation: under `vmap` a branch per operation would compute all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from atkd_jax.data.geometry import warp
from atkd_jax.types import Array

# The order is that of torchvision's table; an operation's number is its place.
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
NUMBER = {name: i for i, name in enumerate(OPERATIONS)}
LUMA = (0.299, 0.587, 0.114)


def randaugment(rng: Array, image: Array, operations: int, magnitude: float) -> Array:
    """Puts one image through random operations, one after another.

    Args:
      image: [H, W, 3] float32 in 0..255.
      operations: how many, drawn with replacement.
      magnitude: 0..30, the same for all; those with a direction draw a sign.
    """
    for i in range(operations):
        rng_operation, rng_sign = jax.random.split(jax.random.fold_in(rng, i))
        number = jax.random.randint(rng_operation, (), 0, len(OPERATIONS))
        sign = jax.random.rademacher(rng_sign, (), jnp.float32)
        image = apply(image, number, jnp.float32(magnitude / 30), sign)
    return image


def apply(image: Array, number: Array, strength: Array, sign: Array) -> Array:
    """One operation on one image [H, W, 3] of whole grey levels in 0..255.

    Args:
      number: [] int32, of OPERATIONS.
      strength: [] float32 in 0..1.
      sign: [] 1 or -1, the direction of shear, translation, rotation and enhancement.
    """

    def only(name: str, value: Array) -> Array:
        """`value` where this is the operation, else 0: nothing is done."""
        return jnp.where(number == NUMBER[name], value, 0.0)

    # Warps. An output pixel (x, y) is read at x + a * y + tx, y + b * x + ty; a rotation turns it.
    height, width, _ = image.shape
    a = only("shear_x", sign * 0.3 * strength)
    b = only("shear_y", sign * 0.3 * strength)
    angle = only("rotate", jnp.deg2rad(sign * 30.0 * strength))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[cos, a - sin], [b + sin, cos]])
    # Shears keep the corner at the origin in its place, as Pillow's do; `warp` keeps the centre.
    shift = jnp.array(
        [
            a * height / 2 + only("translate_x", sign * (150 / 331) * width * strength),
            b * width / 2 + only("translate_y", sign * (150 / 331) * height * strength),
        ]
    )
    image = jnp.round(warp(image, matrix, shift))

    # Blends: image + factor * (image - other), where other has less of what is enhanced.
    grey = jnp.round(image @ jnp.array(LUMA))  # [H, W]
    other = jnp.select(
        [number == NUMBER["color"], number == NUMBER["contrast"], number == NUMBER["sharpness"]],
        [
            jnp.broadcast_to(grey[..., None], image.shape),
            jnp.full_like(image, jnp.floor(grey.mean() + 0.5)),
            smooth(image),
        ],
        jnp.zeros_like(image),  # brightness
    )
    enhanced = (number >= NUMBER["brightness"]) & (number <= NUMBER["sharpness"])
    factor = jnp.where(enhanced, sign * 0.9 * strength, 0.0)
    image = jnp.clip(jnp.trunc(image + factor * (image - other)), 0, 255)

    # Tables of grey levels.
    level = jnp.arange(256.0)
    dropped = 2.0 ** jnp.round(4 * strength)  # 8 - round(4 * strength) bits stay
    table = jnp.select(
        [number == NUMBER["posterize"], number == NUMBER["solarize"]],
        [
            jnp.floor(level / dropped) * dropped,
            jnp.where(level < 255 * (1 - strength), level, 255 - level),
        ],
        level,
    )
    pixels = image.astype(jnp.int32)
    tables = jnp.where(
        number == NUMBER["autocontrast"],
        autocontrast(image),
        jnp.where(number == NUMBER["equalize"], equalize(pixels), table[:, None]),
    )  # [256, 3]
    return jnp.take_along_axis(tables, pixels.reshape(-1, 3), axis=0).reshape(image.shape)


def smooth(image: Array) -> Array:
    """Pillow's SMOOTH filter: 3x3 with a centre of five, the border as it was."""
    # Not nine shifted slices: XLA would compute what `image` came from nine times.
    total = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "valid")
    inner = (total + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(jnp.floor(inner + 0.5))


def autocontrast(image: Array) -> Array:
    """The table [256, 3] that stretches every channel to 0..255."""
    low, high = image.min((0, 1)), image.max((0, 1))  # [3]
    scale = 255.0 / jnp.maximum(high - low, 1.0)
    level = jnp.arange(256.0)[:, None]
    stretched = jnp.clip(jnp.trunc((level - low[None]) * scale[None] + 1e-3), 0, 255)
    return jnp.where((high > low)[None], stretched, level)


def equalize(pixels: Array) -> Array:
    """The table [256, 3] that makes every channel's histogram flat, in Pillow's integers."""
    count = jnp.zeros((256, 3), jnp.int32).at[pixels.reshape(-1, 3), jnp.arange(3)[None]].add(1)
    before = jnp.cumsum(count, axis=0) - count  # [256, 3] pixels darker than a level
    brightest = jnp.max(jnp.where(count > 0, jnp.arange(256)[:, None], 0), axis=0)  # [3]
    last = jnp.take_along_axis(count, brightest[None], axis=0)  # [1, 3]
    step = (count.sum(0, keepdims=True) - last) // 255
    table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, jnp.arange(256)[:, None]).astype(jnp.float32)
