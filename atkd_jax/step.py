"""One training step: pure, per device, no devices named and no I/O.

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
from atkd_jax.data.mix import Mix, mix
from atkd_jax.methods.base import Extras
from atkd_jax.objective import Objective
from atkd_jax.types import Array, Batch, DataSpec, PyTree, TrainState

# Purposes folded into the step's key, so that no two uses of randomness share a stream.
AUGMENT, DROPOUT, METHOD, MIX = range(4)


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
    ema: bool = False,
) -> TrainState:
    """Fresh parameters and state.

    Args:
      batch_size: how many examples a method sees at once: the global batch, or its micro-batch.
      ema: whether the student's average is kept as well.

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
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        method_state=extras.state,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.array, _student(params, batch_stats)) if ema else {},
    )


def _student(params: PyTree, batch_stats: PyTree) -> PyTree:
    return {"params": params["student"], "batch_stats": batch_stats}


def student_variables(state: TrainState) -> PyTree:
    """What the student's module is evaluated with and exported as: the average, if one is kept."""
    return state.ema or _student(state.params, state.batch_stats)


def make_train_step(
    student: Network,
    teacher: Network | None,
    objective: Objective,
    tx: optax.GradientTransformation,
    aug: Augment,
    axis: Axis = Axis(),  # noqa: B008 (an immutable value)
    accumulate: int = 1,
    ema: float = 0.0,
    mixing: Mix = Mix(),  # noqa: B008
) -> Callable[[TrainState, PyTree, Batch, Array], tuple[TrainState, dict[str, Array]]]:
    """Builds `step(state, teacher_variables, batch, rng) -> (state, metrics)` for one device.

    `batch` is this device's part of the global batch, images uint8; `rng` is the key of the run,
    the same at every step. Metrics are means over the global batch: loss, ce, every term
    unweighted, the terms' own metrics, and top1.

    Args:
      accumulate: micro-batches whose gradients are averaged before the optimiser moves, one after
        the other: less memory, the same gradient as that of the whole batch, but for batch norm,
        which normalises with the statistics of a micro-batch (of all devices). Micro-batch i is
        every example whose place in the global batch is i modulo `accumulate`, on any number of
        devices. A method's state goes from micro-batch to micro-batch.
      ema: decay of the student's average over the steps, 0 for none. An early average forgets
        faster, by min(ema, (1 + step) / (10 + step)) as in TensorFlow.
      mixing: mixup and CutMix, after the augmentation; both networks see the mixture.

    Raises:
      ValueError: a method compares the examples of a batch, which it would see only in part; or
        needs one class per example, which are mixed; or `ema` is no decay.
    """
    if not 0 <= ema < 1:
        raise ValueError(f"ema {ema} is not in 0..1, below 1; 0.9999 is usual, 0 keeps no average")
    for name, term in objective.terms.items():
        if accumulate > 1 and term.method.couples_examples:
            raise ValueError(
                f"{name} compares the examples of a batch with each other, and would see only one"
                f" in {accumulate} of them at a time; set accumulate=1 and use more devices or a"
                " smaller batch_size"
            )
        if mixing.active and term.method.needs_one_class:
            raise ValueError(
                f"{name} needs one class per example, not a mixture of two; set data.mix.mixup=0"
                " and data.mix.cutmix=0"
            )

    def train_step(state: TrainState, teacher_variables: PyTree, batch: Batch, rng: Array):
        rng = jax.random.fold_in(rng, state.step)
        position = axis.index() * len(batch.label) + jnp.arange(len(batch.label))
        image = augment(jax.random.fold_in(rng, AUGMENT), batch.image, position, aug)
        label = batch.label
        if mixing.active:
            rng_mix, classes = jax.random.fold_in(rng, MIX), student.module.num_classes
            image, label = mix(rng_mix, image, label, position, classes, mixing, axis.gather)
        batch = batch._replace(image=image, label=label)
        dropout = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(rng, DROPOUT), position
        )

        def gradient(running: Running, part: Batch, dropout: Array, rng: Array):
            """Gradient and metrics of some examples, and the next running statistics."""
            t = teacher.apply(teacher_variables, part.image, train=False) if teacher else None

            def loss_fn(params: PyTree):
                s, updated = student.apply(
                    {"params": params["student"], "batch_stats": running.batch_stats},
                    part.image,
                    train=True,
                    rng=dropout,
                    mutable=["batch_stats"],
                )
                extras = Extras(params["method"], running.method_state)
                loss, (method_state, metrics) = objective.loss(
                    extras, t, s, part, rng, state.step, axis.gather
                )
                answer = part.label if part.label.ndim == 1 else jnp.argmax(part.label, 1)
                metrics["top1"] = jnp.mean(jnp.argmax(s.logits, 1) == answer, dtype=jnp.float32)
                return loss, (Running(updated.get("batch_stats", {}), method_state), metrics)

            grads, (after, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
            return after, (grads, metrics)

        running = Running(state.batch_stats, state.method_state)
        rng = jax.random.fold_in(rng, METHOD)
        if accumulate == 1:
            running, (grads, metrics) = gradient(running, batch, dropout, rng)
        else:
            running, (grads, metrics) = _accumulated(
                gradient, running, (batch, dropout), rng, accumulate
            )
        # Statistics that batch norm synchronised are equal already: their mean changes nothing.
        grads, batch_stats, metrics = axis.mean((grads, running.batch_stats, metrics))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if ema:
            # One minus the decay: float32 has no room for the difference of 1 and 0.9999.
            share = jnp.maximum(1.0 - ema, 9.0 / (10.0 + state.step))
            average = optax.incremental_update(_student(params, batch_stats), average, share)
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            method_state=running.method_state,
            opt_state=opt_state,
            ema=average,
        ), metrics

    return train_step


class Running(NamedTuple):
    """What one micro-batch hands to the next."""

    batch_stats: PyTree
    method_state: PyTree


def _accumulated(gradient: Callable, running: Running, examples: PyTree, rng: Array, n: int):
    """The mean of `gradient` over `n` micro-batches, in a loop, so that one fits in memory."""
    parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), examples)

    def body(carry, item):
        running, sums = carry
        i, (part, dropout) = item
        running, values = gradient(running, part, dropout, jax.random.fold_in(rng, i))
        return (running, jax.tree.map(jnp.add, sums, values)), None

    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes = jax.eval_shape(gradient, running, *first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (running, sums), _ = jax.lax.scan(body, (running, zeros), (jnp.arange(n), parts))
    return running, jax.tree.map(lambda x: x / n, sums)
