"""Runs several training steps in one compiled call to avoid host overhead."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from atkd_jax.training.step import Step
from atkd_jax.types import Batch, PyTree


def make_multi_step(step: Step, fetch: Callable[[PyTree, PyTree], Batch]) -> Callable:
    """Builds a function that takes several steps.

    Args:
      step: one training step.
      fetch: (data, one item of a stack) -> Batch.

    Returns:
      `multi_step(state, teacher_variables, data, stack, start, stop, seed) -> (state, sums, last,
      taken)`: takes the steps from `start` up to `stop`. Returns the metrics summed over the
      steps, those of the last step, and the number of steps taken. Stops after a step in which no
      student's loss is finite.
    """

    def multi_step(state, teacher_variables, data, stack, start, stop, seed):
        @jax.jit  # caches the trace, which eval_shape and while_loop share
        def one(i, state):
            batch = fetch(data, jax.tree.map(lambda x: x[i], stack))
            return step(state, teacher_variables, batch, jax.random.key(seed))

        def body(carry):
            i, state, sums, _ = carry
            state, metrics = one(i, state)
            return i + 1, state, jax.tree.map(jnp.add, sums, metrics), metrics

        def go_on(carry):
            i, _, _, last = carry
            students = last if isinstance(last, tuple) else (last,)
            finite = [jnp.isfinite(metrics["loss"]) for metrics in students]
            return (i < stop) & jnp.any(jnp.stack(finite))

        _, shapes = jax.eval_shape(one, start, state)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        i, state, sums, last = jax.lax.while_loop(go_on, body, (start, state, zeros, zeros))
        return state, sums, last, i - start

    return multi_step
