"""StableHLO by `jax.export`, for servers that run JAX on any platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export

from atkd_jax.export.trained import Serve

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def convert(serve: Serve, image_shape: tuple[int, int, int]) -> bytes:
    """Serialises the function, weights included, for `jax.export.deserialize`.

    JAX guarantees that it stays readable for six months.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return bytes(export.export(jax.jit(serve), platforms=PLATFORMS)(image).serialize())
