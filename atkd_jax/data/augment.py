"""Augmentation on the device: pure functions of (key, images), jnp throughout.

Every example draws its own parameters from `fold_in(rng, position)`, its place in the global batch,
so that the result does not depend on how the batch is spread over devices. Operations are written
for one image [H, W, 3] with their parameters as arguments and mapped over the batch.

`augment` applies what is asked for in this order: flip, rotation, crop, RandAugment, brightness.
All of it acts on raw pixels; normalisation comes after, so a zero-padded border is black, as in the
CIFAR recipe of RepDistiller (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from atkd_jax.data.geometry import PAD_MODES, crop, rotate
from atkd_jax.data.randaugment import randaugment
from atkd_jax.ranges import FLAG, SHARE, check_fields, number, one_of, setting, whole
from atkd_jax.types import Array

# Which parameter a key is for; new ones go to the end, or old runs change.
ROTATE, CROP, FLIP, BRIGHTNESS, RANDAUGMENT = range(5)


@dataclasses.dataclass(frozen=True)
class Augment:
    """What to do to a training image. The default: nothing.

    Attributes:
      pad: pixels added on all four sides before a crop of the original size; both offsets are
        uniform in 0..2*pad.
      pad_mode: "zero" (black) or "reflect" (mirrored without repeating the edge).
      flip: mirror left and right with probability 1/2.
      rotate: largest angle in degrees; the angle is uniform in -rotate..rotate.
      randaugment: how many random operations of RandAugment an image goes through.
      magnitude: how strong they are, 0..30.
      brightness: pixels are multiplied by a factor uniform in 1-brightness..1+brightness and
        clipped.
    """

    pad: int = setting(0, whole(0, 1024))
    pad_mode: str = setting("zero", one_of(*PAD_MODES))
    flip: bool = setting(False, FLAG)
    rotate: float = setting(0.0, number("[0, 180]"))
    randaugment: int = setting(0, whole(0, 100))
    magnitude: float = setting(9.0, number("[0, 30]"))
    brightness: float = setting(0.0, SHARE)

    def __post_init__(self):
        check_fields(self)


def augment(rng: Array, image: Array, position: Array, settings: Augment) -> Array:
    """Augments a batch; with the default `settings` it only scales.

    Args:
      rng: the key of this step, the same on all devices.
      image: [B, H, W, 3] uint8.
      position: [B] int32, each example's place in the global batch.

    Returns:
      [B, H, W, 3] float32 in 0..1.

    Raises:
      ValueError: `reflect` is to mirror more pixels than the image has.
    """
    if settings == Augment():
        return image.astype(jnp.float32) / 255.0
    if settings.pad_mode == "reflect" and settings.pad >= min(image.shape[1:3]):
        raise ValueError(f"pad {settings.pad} is too large to reflect images of {image.shape[1:3]}")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, position)
    return jax.vmap(lambda key, x: _augment_one(key, x, settings))(keys, image)


def _augment_one(key: Array, image: Array, settings: Augment) -> Array:
    """One image [H, W, 3] uint8 -> float32 in 0..1."""
    # The flip first: behind the others XLA on CPU would compute both branches (three times slower).
    if settings.flip:
        image = jnp.where(draw_flip(key), image[:, ::-1], image)
    if settings.rotate:
        image = rotate(image.astype(jnp.float32), draw_angle(key, settings))
    if settings.pad:
        image = crop(image, draw_offset(key, settings), settings.pad, settings.pad_mode)
    image = image.astype(jnp.float32)
    if settings.randaugment:
        rng = jax.random.fold_in(key, RANDAUGMENT)
        image = randaugment(rng, image, settings.randaugment, settings.magnitude)
    image = image / 255.0
    if settings.brightness:
        image = jnp.clip(image * draw_factor(key, settings), 0.0, 1.0)
    return image


def draw_angle(key: Array, settings: Augment) -> Array:
    """[] float32, degrees."""
    key = jax.random.fold_in(key, ROTATE)
    return jax.random.uniform(key, (), minval=-settings.rotate, maxval=settings.rotate)


def draw_offset(key: Array, settings: Augment) -> Array:
    """[2] int32: the crop's first row and column in the padded image."""
    return jax.random.randint(jax.random.fold_in(key, CROP), (2,), 0, 2 * settings.pad + 1)


def draw_flip(key: Array) -> Array:
    """[] bool."""
    return jax.random.bernoulli(jax.random.fold_in(key, FLIP))


def draw_factor(key: Array, settings: Augment) -> Array:
    """[] float32."""
    key = jax.random.fold_in(key, BRIGHTNESS)
    return jax.random.uniform(
        key, (), minval=1 - settings.brightness, maxval=1 + settings.brightness
    )
