"""The networks: `MODELS` names them, `create` makes them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from atkd_jax.models.resnet_cifar import ResNetCifar

# resnet20 has 1x1 convolutions where a stage begins, resnet20a zeros (shortcut options B and A).
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(ResNetCifar, depth=8),
    "resnet14": partial(ResNetCifar, depth=14),
    "resnet20": partial(ResNetCifar, depth=20),
    "resnet32": partial(ResNetCifar, depth=32),
    "resnet44": partial(ResNetCifar, depth=44),
    "resnet56": partial(ResNetCifar, depth=56),
    "resnet110": partial(ResNetCifar, depth=110),
    "resnet8a": partial(ResNetCifar, depth=8, shortcut="A"),
    "resnet14a": partial(ResNetCifar, depth=14, shortcut="A"),
    "resnet20a": partial(ResNetCifar, depth=20, shortcut="A"),
    "resnet32a": partial(ResNetCifar, depth=32, shortcut="A"),
    "resnet44a": partial(ResNetCifar, depth=44, shortcut="A"),
    "resnet56a": partial(ResNetCifar, depth=56, shortcut="A"),
    "resnet110a": partial(ResNetCifar, depth=110, shortcut="A"),
    "resnet8x4": partial(ResNetCifar, depth=8, widths=(32, 64, 128, 256)),
    "resnet32x4": partial(ResNetCifar, depth=32, widths=(32, 64, 128, 256)),
}


def create(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, bn_axis: str | None = None
) -> nn.Module:
    """The network called `name`, as a Flax module without parameters.

    All are called alike: `apply(variables, image, train=False, rng=None) -> ModelOut`, with
      image: [B, H, W, 3] float, normalised.
      train: batch norm uses, and updates, the statistics of the batch (`mutable=["batch_stats"]`).
      rng: [B] typed keys, one per example, for the networks with dropout; None is no dropout. As
        every example brings its own key, what is dropped does not depend on how a batch is split.

    Args:
      name: a key of `MODELS`.
      num_classes: K of the logits.
      dtype: what the network computes in; parameters, batch statistics and logits are float32.
      bn_axis: the device axis over which batch statistics are averaged in training.

    Raises:
      ValueError: there is no network of that name.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
        raise ValueError(f"no model is called {name!r}; did you mean {near!r}?")
    return MODELS[name](num_classes=num_classes, dtype=dtype, bn_axis=bn_axis)
