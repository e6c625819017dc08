"""Augmentation on the device: pure functions of (key, images).

Every example draws its parameters from `fold_in(rng, position)`, its place in the global batch, so
that the result does not depend on the number of devices. Operations are written for one image
[H, W, 3] with their parameters as arguments and mapped over the batch.

`augment` applies flip, rotation, crop, RandAugment and brightness, in this order. All of them act
on raw pixels; normalisation comes later, so a zero-padded border is black, as in the CIFAR recipe
of RepDistiller (Tian et al. 2020, arXiv 1910.10699).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from atkd_jax.data.geometry import PAD_MODES, crop, rotate
from atkd_jax.data.randaugment import randaugment
from atkd_jax.errors import UserError
from atkd_jax.ranges import FLAG, SHARE, check_fields, number, one_of, setting, whole
from atkd_jax.types import Array

# Folded into an example's key, one per parameter. Append new ones, or old runs change.
ROTATE, CROP, FLIP, BRIGHTNESS, RANDAUGMENT = range(5)


@dataclasses.dataclass(frozen=True)
class Augment:
    """How to augment a training image. The default: not at all.

    Attributes:
      pad: pixels added on all four sides before a crop of the original size; both offsets are
        uniform in 0..2*pad.
      pad_mode: "zero" (black) or "reflect" (mirrored without repeating the edge).
      flip: mirror left and right with probability 1/2.
      rotate: largest angle in degrees; the angle is uniform in -rotate..rotate.
      randaugment: number of random RandAugment operations per image.
      magnitude: their strength, 0..30.
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

    def __post_init__(self) -> None:
        check_fields(self)


def augment(rng: Array, image: Array, position: Array, policy: Augment) -> Array:
    """Augments a batch and scales it to 0..1.

    Args:
      rng: the key of this step, the same on all devices.
      image: [B, H, W, 3] uint8.
      position: [B] int32, each example's place in the global batch.
      policy: how to augment; the default only scales.

    Returns:
      [B, H, W, 3] float32 in 0..1.

    Raises:
      UserError: `reflect` would mirror more pixels than the image has.
    """
    if policy == Augment():
        return image.astype(jnp.float32) / 255.0
    if policy.pad_mode == "reflect" and policy.pad >= min(image.shape[1:3]):
        raise UserError(f"pad {policy.pad} is too large to reflect images of {image.shape[1:3]}")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, position)
    return jax.vmap(lambda key, x: _augment_one(key, x, policy))(keys, image)


def _augment_one(key: Array, image: Array, policy: Augment) -> Array:
    """One image [H, W, 3] uint8 -> float32 in 0..1."""
    # The flip comes first: after the others XLA on CPU computes both branches, three times slower.
    if policy.flip:
        image = jnp.where(draw_flip(key), image[:, ::-1], image)
    if policy.rotate:
        image = rotate(image.astype(jnp.float32), draw_angle(key, policy.rotate))
    if policy.pad:
        image = crop(image, draw_offset(key, policy.pad), policy.pad, policy.pad_mode)
    image = image.astype(jnp.float32)
    if policy.randaugment:
        rng = jax.random.fold_in(key, RANDAUGMENT)
        image = randaugment(rng, image, policy.randaugment, policy.magnitude)
    image = image / 255.0
    if policy.brightness:
        image = jnp.clip(image * draw_factor(key, policy.brightness), 0.0, 1.0)
    return image


def draw_angle(key: Array, limit: float) -> Array:
    """[] float32, uniform in -limit..limit degrees."""
    return jax.random.uniform(jax.random.fold_in(key, ROTATE), (), minval=-limit, maxval=limit)


def draw_offset(key: Array, pad: int) -> Array:
    """[2] int32, uniform in 0..2*pad: the crop's first row and column in the padded image."""
    return jax.random.randint(jax.random.fold_in(key, CROP), (2,), 0, 2 * pad + 1)


def draw_flip(key: Array) -> Array:
    """[] bool, true with probability 1/2."""
    return jax.random.bernoulli(jax.random.fold_in(key, FLIP))


def draw_factor(key: Array, brightness: float) -> Array:
    """[] float32, uniform in 1-brightness..1+brightness."""
    key = jax.random.fold_in(key, BRIGHTNESS)
    return jax.random.uniform(key, (), minval=1 - brightness, maxval=1 + brightness)
