"""Mixup and CutMix: a training image becomes a mixture of two, its label the same mixture.

Teacher and student both see the mixture ("consistent teaching", Beyer et al. 2021, arXiv
2106.05237), so it is made before either forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atkd_jax.ranges import NOT_NEGATIVE, SHARE, check_fields, setting
from atkd_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Mix:
    """How to mix. The default: not at all. With both, each step uses one of them at random.

    Attributes:
      mixup: alpha of Beta(alpha, alpha), the distribution of an image's share in its mixture
        (Zhang et al. 2017, arXiv 1710.09412); 0 for no mixup.
      cutmix: the same for the share of the area that an image keeps; the rest is a rectangle of
        its partner (Yun et al. 2019, arXiv 1905.04899); 0 for no CutMix.
      probability: of a step being mixed at all.
    """

    mixup: float = setting(0.0, NOT_NEGATIVE)
    cutmix: float = setting(0.0, NOT_NEGATIVE)
    probability: float = setting(1.0, SHARE)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def active(self) -> bool:
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def mix(
    rng: Array,
    image: Array,
    label: Array,
    position: Array,
    num_classes: int,
    policy: Mix,
    gather: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[Array, Array]:
    """Mixes every image with its partner in one random permutation of the global batch.

    The share is drawn once per step, as the authors do. Nothing depends on the number of devices.

    Args:
      rng: the key of this step, the same on all devices.
      image: [B, H, W, 3] floats, this device's part of the batch.
      label: [B] int32.
      position: [B] int32, each example's place in the global batch.
      num_classes: K.
      policy: how to mix; must be `active`.
      gather: gathers a tree of this device's examples to the global batch; the identity on one
        device.

    Returns:
      image [B, H, W, 3] of the given type, label [B, K] float32 probabilities.
    """
    rng_order, rng_which, rng_share, rng_place, rng_whether = jax.random.split(rng, 5)
    images, labels = gather((image, label))
    partner = jax.random.permutation(rng_order, len(labels))[position]  # [B]
    _, height, width, _ = image.shape
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(policy, kind)]
    which = jax.random.randint(rng_which, (), 0, len(kinds))
    alpha = jnp.array([getattr(policy, kind) for kind in kinds], jnp.float32)[which]
    share = jax.random.beta(rng_share, alpha, alpha)
    shares = {  # [H, W]: at every pixel, the image's own share
        "mixup": jnp.full((height, width), share),
        "cutmix": 1.0 - rectangle(rng_place, height, width, 1.0 - share),
    }
    own = jnp.stack([shares[kind] for kind in kinds])[which]
    own = jnp.where(jax.random.uniform(rng_whether) < policy.probability, own, 1.0)
    weight = own[None, :, :, None]
    mixed = weight * image + (1.0 - weight) * images[partner]
    share = own.mean()
    one_hot = jax.nn.one_hot(label, num_classes)
    return mixed, share * one_hot + (1.0 - share) * jax.nn.one_hot(labels[partner], num_classes)


def rectangle(rng: Array, height: int, width: int, area: Array) -> Array:
    """[height, width] float32: 1 in a rectangle of the image's shape, 0 elsewhere.

    Its centre is uniform over the image; its share of the image is `area` before clipping to the
    border, as in the authors' code.
    """
    y, x = jax.random.uniform(rng, (2,)) * jnp.array([height, width])
    half = jnp.sqrt(area) / 2
    rows = jnp.abs(jnp.arange(height) + 0.5 - y) < half * height
    columns = jnp.abs(jnp.arange(width) + 0.5 - x) < half * width
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)
