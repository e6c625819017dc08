"""One training step and one evaluation step: pure, per device, no devices named and no I/O.

The path of an image: uint8 from the data set -> `augment` (0..1) -> normalised once for the teacher
and once for the student -> both networks -> `Objective.loss` -> gradient -> optax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from atkd_jax.data.augment import Augment, augment, normalize
from atkd_jax.methods.base import Extras
from atkd_jax.objective import Objective, cross_entropy
from atkd_jax.types import Array, Batch, DataSpec, PyTree, TrainState

# Purposes folded into the step's key, so that no two uses of randomness share a stream.
AUGMENT, DROPOUT, METHOD = range(3)


class Network(NamedTuple):
    """A module and the normalisation that its weights expect (pixels in 0..1, per channel)."""

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, variables: PyTree, image: Array, **kwargs):
        """image [B, H, W, 3] float32 in 0..1 -> what the module returns."""
        return self.module.apply(variables, normalize(image, self.mean, self.std), **kwargs)


class Axis(NamedTuple):
    """What a step needs to know of the devices beside its own. The default: there are none.

    Attributes:
      mean: mean of a tree over the devices.
      gather: concatenates every device's examples.
      index: this device's place.
    """

    mean: Callable[[PyTree], PyTree] = lambda tree: tree
    gather: Callable[[PyTree], PyTree] = lambda tree: tree
    index: Callable[[], Array | int] = lambda: 0


def init_state(
    student: Network,
    teacher: Network | None,
    objective: Objective,
    tx: optax.GradientTransformation,
    data: DataSpec,
    batch_size: int,
    rng: Array,
) -> TrainState:
    """Fresh parameters and state. `batch_size` is global: methods see the shapes of all examples.

    Raises:
      ValueError: a method's tap is missing in one of the networks, or does not fit.
    """
    rng_student, rng_method = jax.random.split(rng)
    image = jax.ShapeDtypeStruct((batch_size, *data.image_shape), jnp.float32)
    one = jnp.zeros((1, *data.image_shape), jnp.float32)
    variables = student.module.init(rng_student, one)
    s = jax.eval_shape(lambda v, x: student.module.apply(v, x), variables, image)
    t = None
    if teacher is not None:
        t = jax.eval_shape(lambda x: teacher.module.init_with_output(rng_method, x)[0], image)
    extras = objective.init(rng_method, t, s, data)
    params = {"student": variables["params"], "method": extras.params}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        method_state=extras.state,
        opt_state=tx.init(params),
    )


def make_train_step(
    student: Network,
    teacher: Network | None,
    objective: Objective,
    tx: optax.GradientTransformation,
    aug: Augment,
    axis: Axis = Axis(),  # noqa: B008 (an immutable value)
) -> Callable[[TrainState, PyTree, Batch, Array], tuple[TrainState, dict[str, Array]]]:
    """Builds `step(state, teacher_variables, batch, rng) -> (state, metrics)` for one device.

    `batch` is this device's part of the global batch, images uint8; `rng` is the key of the run,
    the same at every step. Metrics are means over the global batch: loss, ce, every term
    unweighted, the terms' own metrics, and top1.
    """

    def train_step(state: TrainState, teacher_variables: PyTree, batch: Batch, rng: Array):
        rng = jax.random.fold_in(rng, state.step)
        position = axis.index() * len(batch.label) + jnp.arange(len(batch.label))
        image = augment(jax.random.fold_in(rng, AUGMENT), batch.image, position, aug)
        dropout = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(rng, DROPOUT), position
        )
        t = teacher.apply(teacher_variables, image, train=False) if teacher else None

        def loss_fn(params: PyTree):
            s, updated = student.apply(
                {"params": params["student"], "batch_stats": state.batch_stats},
                image,
                train=True,
                rng=dropout,
                mutable=["batch_stats"],
            )
            extras = Extras(params["method"], state.method_state)
            loss, (method_state, metrics) = objective.loss(
                extras, t, s, batch, jax.random.fold_in(rng, METHOD), state.step, axis.gather
            )
            metrics["top1"] = jnp.mean(jnp.argmax(s.logits, 1) == batch.label, dtype=jnp.float32)
            return loss, (updated.get("batch_stats", {}), method_state, metrics)

        grads, (batch_stats, method_state, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        # Statistics that batch norm synchronised are equal already: their mean changes nothing.
        grads, batch_stats, metrics = axis.mean((grads, batch_stats, metrics))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            method_state=method_state,
            opt_state=opt_state,
        ), metrics

    return train_step


def make_dispatch(
    train_step: Callable, fetch: Callable[[PyTree, PyTree], Batch], in_loop: bool
) -> Callable:
    """Builds a function that takes several steps, so that the host is out of the way.

    Args:
      train_step: of `make_train_step`.
      fetch: (data, one item of a stack) -> Batch.
      in_loop: a `while_loop` from `start` to `stop`; otherwise the one step `start`, without a
        loop around it.

    Returns:
      `dispatch(state, teacher_variables, data, stack, start, stop, seed) -> (state, sums, last)`:
      metrics summed over the steps, and those of the last step with its number. A step whose loss
      is not finite is the last one taken.
    """

    def dispatch(state, teacher_variables, data, stack, start, stop, seed):
        def one(i, state):
            batch = fetch(data, jax.tree.map(lambda x: x[i], stack))
            after, metrics = train_step(state, teacher_variables, batch, jax.random.key(seed))
            return after, metrics, metrics | {"step": state.step}

        if not in_loop:
            return one(start, state)

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


def make_eval_step(network: Network) -> Callable[[PyTree, Batch], dict[str, Array]]:
    """Builds `step(variables, batch) -> sums over the unmasked examples` for one device.

    The sums: top1 and top5 (correct answers), loss (nats), count (examples).
    """

    def eval_step(variables: PyTree, batch: Batch) -> dict[str, Array]:
        logits = network.apply(variables, batch.image.astype(jnp.float32) / 255.0).logits
        mask = batch.mask.astype(jnp.float32)
        true_logit = jnp.take_along_axis(logits, batch.label[:, None], axis=1)
        rank = jnp.sum(logits > true_logit, axis=1)  # [B] classes that beat the true one
        return {
            "top1": jnp.sum(mask * (jnp.argmax(logits, 1) == batch.label)),
            "top5": jnp.sum(mask * (rank < 5)),
            "loss": jnp.sum(mask * jax.vmap(cross_entropy)(logits[:, None], batch.label[:, None])),
            "count": jnp.sum(mask),
        }

    return eval_step
