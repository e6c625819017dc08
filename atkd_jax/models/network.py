"""A module together with the normalisation that its weights expect."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from atkd_jax.nn.platform import cpu_or_default
from atkd_jax.types import Array, ModelOut, PyTree


class Network(NamedTuple):
    """A module and its normalisation.

    Attributes:
      module: returns a `ModelOut` for images [B, H, W, 3].
      mean, std: per channel, of pixels in 0..1.
    """

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, variables: PyTree, image: Array, **kwargs: Any) -> Any:
        """The module's output for images [B, H, W, 3], float32 in 0..1."""
        return self.module.apply(variables, normalize(image, self.mean, self.std), **kwargs)

    def infer(self, variables: PyTree, image: Array) -> ModelOut:
        """The same in evaluation mode; on CPU in slices of the batch that stay in the cache."""
        apply = partial(self.apply, variables, train=False)

        def sliced(image: Array) -> ModelOut:
            batch = len(image)
            most = 8 if image.shape[1] <= 64 else 4
            size = max(n for n in range(1, most + 1) if batch % n == 0)
            if size == batch:
                return apply(image)
            out = jax.lax.map(apply, image.reshape(-1, size, *image.shape[1:]))
            return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), out)

        return cpu_or_default(image, cpu=sliced, default=apply)


def normalize(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(image - mean) / std per channel, for [..., 3] floats in 0..1."""
    shape = (1,) * (image.ndim - 1) + (3,)
    mean_, std_ = (np.asarray(x, np.float32).reshape(shape) for x in (mean, std))
    return (image - mean_) / std_
