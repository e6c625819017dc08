"""StableHLO by `jax.export`: for servers that run JAX, on whatever it runs on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export

from atkd_jax.export.student import Serve

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def convert(serve: Serve, image_shape: tuple[int, int, int]) -> bytes:
    """What `jax.export.deserialize` reads, weights included. JAX keeps it readable for 6 months."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return bytes(export.export(jax.jit(serve), platforms=PLATFORMS)(image).serialize())
