"""Collective operations that a per-device function may use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from atkd_jax.types import Array, PyTree


def _identity(tree: PyTree) -> PyTree:
    return tree


def _zero() -> int:
    return 0


class Collectives(NamedTuple):
    """Collective operations over the devices of a step. The default is for a single device.

    Attributes:
      name: of the device axis, for layers that reduce over it themselves (batch norm); None where
        there is none.
      mean: mean of a tree over the devices.
      gather: concatenates every device's examples along the first axis.
      index: this device's position on the axis.
    """

    name: str | None = None
    mean: Callable[[PyTree], PyTree] = _identity
    gather: Callable[[PyTree], PyTree] = _identity
    index: Callable[[], Array | int] = _zero  # type: ignore[assignment]  # hides tuple.index


def over(name: str) -> Collectives:
    """Collectives over a named axis of `jax.shard_map`, `jax.pmap` or `jax.vmap`."""
    return Collectives(
        name=name,
        mean=functools.partial(jax.lax.pmean, axis_name=name),
        gather=functools.partial(jax.lax.all_gather, axis_name=name, axis=0, tiled=True),
        index=functools.partial(jax.lax.axis_index, name),
    )
