"""The mean over a period: the micro-batches of a step, or the steps of an epoch."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from atkd_jax.types import Array


class PeriodMean(NamedTuple):
    """The running mean of the current period, as part of a method's state.

    Periods are numbered by `Context`: `ctx.step` for a mean over the micro-batches of a step,
    `ctx.step // ctx.steps_per_epoch` for one over an epoch. A period's mean is complete once a
    value of a later period arrives, so that nobody needs the number of calls in a period.

    Attributes:
      period: [] int32, its number.
      count: [] int32, values so far.
      total: their sum.
    """

    period: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count
    total: Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> PeriodMean:
        """No values yet, in period 0."""
        zero = jnp.zeros((), jnp.int32)
        return cls(zero, zero, jnp.zeros(shape, jnp.float32))

    def is_complete(self, period: Array | int) -> Array:
        """Whether there is a mean that a value of `period` does not belong to."""
        return (self.period != period) & (self.count > 0)

    def add(self, period: Array | int, value: Array) -> PeriodMean:
        """With one more value; the first one of another period starts from zero."""
        complete = self.is_complete(period)
        return PeriodMean(
            jnp.asarray(period, jnp.int32),
            jnp.where(complete, 0, self.count) + 1,
            jnp.where(complete, 0.0, self.total) + value,
        )

    @property
    def mean(self) -> Array:
        """The mean of the values so far; zero before the first."""
        return self.total / jnp.maximum(self.count, 1)
