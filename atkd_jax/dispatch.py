"""Several steps in one call, so that the host is out of the way."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from atkd_jax.types import Batch, PyTree


def make_dispatch(train_step: Callable, fetch: Callable[[PyTree, PyTree], Batch]) -> Callable:
    """Builds a function that takes several steps.

    Args:
      train_step: of `make_train_step`.
      fetch: (data, one item of a stack) -> Batch.

    Returns:
      `dispatch(state, teacher_variables, data, stack, start, stop, seed) -> (state, sums, last)`:
      takes the steps from `start` up to `stop`, one after another; metrics summed over them, and
      those of the last with its number. A step whose loss is not finite is the last one taken.
    """

    def dispatch(state, teacher_variables, data, stack, start, stop, seed):
        @jax.jit  # for its memory: the step is traced once, though it is looked at twice
        def one(i, state):
            batch = fetch(data, jax.tree.map(lambda x: x[i], stack))
            after, metrics = train_step(state, teacher_variables, batch, jax.random.key(seed))
            return after, metrics, metrics | {"step": state.step}

        def body(carry):
            i, state, sums, _ = carry
            state, metrics, last = one(i, state)
            return i + 1, state, jax.tree.map(jnp.add, sums, metrics), last

        def go_on(carry):
            i, _, _, last = carry
            return (i < stop) & jnp.isfinite(last["loss"])

        _, *shapes = jax.eval_shape(one, start, state)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.while_loop(go_on, body, (start, state, *zeros))[1:]

    return dispatch
