"""RandAugment on the device (Cubuk et al. 2019, arXiv 1909.13719), for one image.

The operations, their ranges and their strengths at magnitude M of 30 are torchvision's; each is
Pillow's operation of that name, with bilinear interpolation and a black background. There are three
kinds: a warp, a blend with another image, a lookup table of grey levels. Under `vmap` a `switch`
computes all its branches, so the code that operations of a kind share is outside the branches.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from atkd_jax.data.geometry import warp
from atkd_jax.types import Array

# In the order of torchvision's table; an operation's number is its place here.
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
NUMBER = {name: i for i, name in enumerate(OPERATIONS)}
LUMA = (0.299, 0.587, 0.114)


def randaugment(rng: Array, image: Array, operations: int, magnitude: float) -> Array:
    """Applies random operations to one image, one after another.

    Args:
      image: [H, W, 3] float32 in 0..255.
      operations: their number; they are drawn with replacement.
      magnitude: 0..30, the same for all; operations with a direction draw a sign.
    """
    for i in range(operations):
        number, sign = draw(jax.random.fold_in(rng, i))
        # On CPU one image of a batch after the other, each with its own operation only: six times
        # faster than all operations for all images, which suits accelerators.
        image = jax.lax.platform_dependent(
            image, number, jnp.float32(magnitude / 30), sign,
            cpu=sequential_vmap(apply), default=apply,
        )  # fmt: skip
    return image


def draw(rng: Array) -> tuple[Array, Array]:
    """An operation's number, [] int32, and a direction, [] 1 or -1."""
    rng_number, rng_sign = jax.random.split(rng)
    number = jax.random.randint(rng_number, (), 0, len(OPERATIONS))
    return number, jax.random.rademacher(rng_sign, (), jnp.float32)


def apply(image: Array, number: Array, strength: Array, sign: Array) -> Array:
    """Applies one operation to one image [H, W, 3] of whole grey levels in 0..255.

    Args:
      number: [] int32, of OPERATIONS.
      strength: [] float32 in 0..1.
      sign: [] 1 or -1, the direction of shear, translation, rotation and enhancement.
    """
    first = jnp.array([NUMBER[name] for name in ("shear_x", "brightness", "posterize")])
    kind = jnp.sum(number >= first)
    kinds = [lambda image, *_: image, warped, blended, looked_up]
    return jax.lax.switch(kind, kinds, image, number, strength, sign)


def warped(image: Array, number: Array, strength: Array, sign: Array) -> Array:
    """Reads the output pixel (x, y) at (x + a * y + tx, y + b * x + ty), or at its rotation."""

    def only(name: str, value: Array) -> Array:
        """`value` if this is the operation, else 0, which changes nothing."""
        return jnp.where(number == NUMBER[name], value, 0.0)

    height, width, _ = image.shape
    a = only("shear_x", sign * 0.3 * strength)
    b = only("shear_y", sign * 0.3 * strength)
    angle = only("rotate", jnp.deg2rad(sign * 30.0 * strength))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[cos, a - sin], [b + sin, cos]])
    # Shears keep the corner at the origin fixed, as Pillow's do; `warp` keeps the centre fixed.
    shift = jnp.array(
        [
            a * height / 2 + only("translate_x", sign * (150 / 331) * width * strength),
            b * width / 2 + only("translate_y", sign * (150 / 331) * height * strength),
        ]
    )
    return jnp.round(warp(image, matrix, shift))


def blended(image: Array, number: Array, strength: Array, sign: Array) -> Array:
    """image + factor * (image - other), where `other` lacks the property to enhance."""
    others: list[Callable[..., Array]] = [jnp.zeros_like, colourless, without_contrast, smooth]
    other = jax.lax.switch(number - NUMBER["brightness"], others, image)
    return jnp.clip(jnp.trunc(image + sign * 0.9 * strength * (image - other)), 0, 255)


def looked_up(image: Array, number: Array, strength: Array, sign: Array) -> Array:
    """Maps the pixels of every channel through its table of grey levels."""
    del sign
    pixels = image.astype(jnp.int32).reshape(-1, 3)
    tables = [posterize, solarize, autocontrast, equalize]
    table = jax.lax.switch(number - NUMBER["posterize"], tables, pixels, strength)
    return jnp.take_along_axis(table, pixels, axis=0).reshape(image.shape)


def colourless(image: Array) -> Array:
    grey = jnp.round(image @ jnp.array(LUMA))  # [H, W]
    return jnp.broadcast_to(grey[..., None], image.shape)


def without_contrast(image: Array) -> Array:
    return jnp.full_like(image, jnp.floor(colourless(image).mean() + 0.5))


def smooth(image: Array) -> Array:
    """Pillow's SMOOTH filter: 3x3 with a centre weight of five; the border is unchanged."""
    # Not nine shifted slices: XLA would recompute the producer of `image` nine times.
    total = jax.lax.reduce_window(image, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "valid")
    inner = (total + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(jnp.floor(inner + 0.5))


# Tables [256, 3] of grey levels, from pixels [H * W, 3] int32 and a strength.


def posterize(pixels: Array, strength: Array) -> Array:
    """Keeps 8 - round(4 * strength) bits."""
    del pixels
    dropped = 2.0 ** jnp.round(4 * strength)
    return jnp.floor(levels() / dropped) * dropped


def solarize(pixels: Array, strength: Array) -> Array:
    """Inverts bright levels."""
    del pixels
    return jnp.where(levels() < 255 * (1 - strength), levels(), 255 - levels())


def autocontrast(pixels: Array, strength: Array) -> Array:
    """Stretches every channel to 0..255."""
    del strength
    low, high = pixels.min(0, keepdims=True), pixels.max(0, keepdims=True)  # [1, 3]
    scale = 255.0 / jnp.maximum(high - low, 1)
    stretched = jnp.clip(jnp.trunc((levels() - low) * scale + 1e-3), 0, 255)
    return jnp.where(high > low, stretched, levels())


def equalize(pixels: Array, strength: Array) -> Array:
    """Equalises every channel's histogram, in Pillow's integer arithmetic."""
    del strength
    count = jnp.zeros((256, 3), jnp.int32).at[pixels, jnp.arange(3)[None]].add(1)
    before = jnp.cumsum(count, axis=0) - count  # [256, 3] pixels darker than each level
    last = jnp.take_along_axis(count, pixels.max(0, keepdims=True), axis=0)  # [1, 3]
    step = (len(pixels) - last) // 255
    table = jnp.clip((step // 2 + before) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, levels())


def levels() -> Array:
    """[256, 3] float32: the identity table."""
    return jnp.broadcast_to(jnp.arange(256.0)[:, None], (256, 3))
