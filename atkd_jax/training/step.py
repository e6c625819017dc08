"""One training step: a pure per-device function without I/O.

The path of an image: uint8 from the data set -> `augment` (0..1) -> `mix` -> normalised once for
the teacher and once for the student -> both networks -> `Objective.loss` -> gradient -> optax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from atkd_jax.data.augment import Augment, augment
from atkd_jax.data.mix import Mix, mix
from atkd_jax.errors import UserError
from atkd_jax.methods.base import Context, Extras
from atkd_jax.models.network import Network
from atkd_jax.nn.collectives import Collectives
from atkd_jax.training.objective import Objective
from atkd_jax.types import Array, Batch, DataInfo, Metrics, ModelOut, PyTree, TrainState

# Folded into the key of the step, so that no two uses of randomness share a stream.
AUGMENT, DROPOUT, METHOD, MIX = range(4)


class Step(Protocol):
    """A training step: `TrainStep` for one student, `SharedTeacherStep` for several.

    State and metrics are one student's, or tuples of several students'.
    """

    def init(self, rng: Array, info: DataInfo, batch_size: int) -> PyTree: ...

    def __call__(
        self, state: PyTree, teacher_variables: PyTree, batch: Batch, rng: Array, /
    ) -> tuple[PyTree, Metrics | tuple[Metrics, ...]]: ...


@dataclasses.dataclass(frozen=True, eq=False)  # jax.jit hashes it
class TrainStep:
    """A training step of one student, on one device.

    Attributes:
      student, teacher: the networks; no teacher if the objective has no terms.
      objective: the loss.
      tx: optimiser of the parameters of the student and of the methods.
      steps_per_epoch: for methods whose loss depends on the epoch.
      augment: augmentation of the uint8 images, before both networks.
      mix: mixup and CutMix after the augmentation, also for both networks.
      axis: collectives over the devices.
      accumulate: number of micro-batches that are processed one after the other and whose gradients
        are averaged. Takes less memory and gives the gradient of the whole batch, except that batch
        norm uses the statistics of a micro-batch (over all devices). Micro-batch i consists of
        the examples whose position in the global batch is i modulo `accumulate`, on any number of
        devices. Methods pass their state from micro-batch to micro-batch.
      ema: decay of the moving average of the student, 0 for none. Early in training the decay is
        min(ema, (1 + step) / (10 + step)), as in TensorFlow.

    Raises:
      UserError: a method compares the examples of a batch, and the batch is accumulated; a method
        needs hard labels, and labels are mixed; or `ema` is out of range.
    """

    student: Network
    teacher: Network | None
    objective: Objective
    tx: optax.GradientTransformation
    steps_per_epoch: int
    augment: Augment = Augment()
    mix: Mix = Mix()
    axis: Collectives = Collectives()
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self):
        if not 0 <= self.ema < 1:
            raise UserError(
                f"ema {self.ema} is not in 0..1, below 1; 0.9999 is usual, 0 keeps no average"
            )
        for name, term in self.objective.terms.items():
            if self.accumulate > 1 and term.method.needs_global_batch:
                raise UserError(
                    f"{name} compares the examples of a batch with each other, and would see only"
                    f" one in {self.accumulate} of them at a time; set accumulate=1 and use more"
                    " devices or a smaller batch_size"
                )
            if self.mix.active and term.method.needs_hard_labels:
                raise UserError(
                    f"{name} needs one class per example, not a mixture of two; set"
                    " data.mix.mixup=0 and data.mix.cutmix=0"
                )

    def init(self, rng: Array, info: DataInfo, batch_size: int) -> TrainState:
        """Initial parameters and state.

        Args:
          rng: a key.
          info: the training set.
          batch_size: of all devices.

        Raises:
          UserError: a tap is missing in one of the networks, or its shape does not fit.
        """
        rng_student, rng_method = jax.random.split(rng)
        at_once = batch_size // self.accumulate  # examples in a call of a method
        image = jax.ShapeDtypeStruct((at_once, *info.image_shape), jnp.float32)
        one = jnp.zeros((1, *info.image_shape), jnp.float32)
        variables = self.student.module.init(rng_student, one)
        s = jax.eval_shape(lambda v, x: self.student.module.apply(v, x), variables, image)
        t = None
        if self.teacher is not None:
            module = self.teacher.module
            t = jax.eval_shape(lambda x: module.init_with_output(rng_method, x)[0], image)
        extras = self.objective.init(rng_method, t, s, info)
        params = {"student": variables["params"], "method": extras.params}
        batch_stats = variables.get("batch_stats", {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            method_state=extras.state,
            opt_state=self.tx.init(params),
            ema=jax.tree.map(jnp.array, _student(params, batch_stats)) if self.ema else {},
        )

    def __call__(
        self, state: TrainState, teacher_variables: PyTree, batch: Batch, rng: Array
    ) -> tuple[TrainState, Metrics]:
        """Takes one step.

        Args:
          state: the same on all devices.
          teacher_variables: variables of the teacher's module; () without a teacher.
          batch: this device's part of the global batch, images uint8.
          rng: the key of the run, the same at every step.

        Returns:
          the next state, the same on all devices, and means over the global batch: loss, ce, every
          term unweighted, the terms' own metrics, and top1.
        """
        rng = jax.random.fold_in(rng, state.step)
        batch, dropout = self.prepare(batch, rng)

        def gradient(carried: Carried, part: Batch, dropout: Array, rng: Array):
            t = _answer(self.teacher, teacher_variables, part.image)
            return self.gradient(state, carried, t, part, dropout, rng)

        carried, rng = Carried(state.batch_stats, state.method_state), _method_key(rng)
        if self.accumulate == 1:
            out = gradient(carried, batch, dropout, rng)
        else:
            out = _accumulated(gradient, carried, (batch, dropout), rng, self.accumulate)
        return self.update(state, *out)

    def prepare(self, batch: Batch, rng: Array) -> tuple[Batch, Array]:
        """Augments and mixes images, to 0..1, and makes a dropout key for every example.

        Args:
          rng: the key of the step.
        """
        position = self.axis.index() * len(batch.label) + jnp.arange(len(batch.label))
        image = augment(jax.random.fold_in(rng, AUGMENT), batch.image, position, self.augment)
        label = batch.label
        if self.mix.active:
            rng_mix, classes = jax.random.fold_in(rng, MIX), self.student.module.num_classes
            image, label = mix(rng_mix, image, label, position, classes, self.mix, self.axis.gather)
        rng_dropout = jax.random.fold_in(rng, DROPOUT)
        dropout = jax.vmap(jax.random.fold_in, (None, 0))(rng_dropout, position)
        return batch._replace(image=image, label=label), dropout

    def gradient(
        self,
        state: TrainState,
        carried: Carried,
        t: ModelOut | None,
        batch: Batch,
        dropout: Array,
        rng: Array,
    ) -> tuple[Carried, PyTree, Metrics]:
        """The statistics and method state after these examples, their gradient, and metrics."""

        def loss_fn(params: PyTree):
            s, updated = self.student.apply(
                {"params": params["student"], "batch_stats": carried.batch_stats},
                batch.image,
                train=True,
                rng=dropout,
                mutable=["batch_stats"],
            )
            extras = Extras(params["method"], carried.method_state)
            ctx = Context(rng, state.step, self.steps_per_epoch, self.axis)
            loss, (method_state, metrics) = self.objective.loss(extras, t, s, batch, ctx)
            answer = batch.label if batch.label.ndim == 1 else jnp.argmax(batch.label, 1)
            metrics["top1"] = jnp.mean(jnp.argmax(s.logits, 1) == answer, dtype=jnp.float32)
            return loss, (Carried(updated.get("batch_stats", {}), method_state), metrics)

        grads, (carried, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        return carried, grads, metrics

    def update(
        self, state: TrainState, carried: Carried, grads: PyTree, metrics: Metrics
    ) -> tuple[TrainState, Metrics]:
        """Averages over the devices and applies the optimiser."""
        # The mean does not change statistics that batch norm has synchronised.
        grads, batch_stats, metrics = self.axis.mean((grads, carried.batch_stats, metrics))
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if self.ema:
            # One minus the decay, computed in Python: 1 - 0.9999 loses digits in float32.
            share = jnp.maximum(1.0 - self.ema, 9.0 / (10.0 + state.step))
            average = optax.incremental_update(_student(params, batch_stats), average, share)
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            method_state=carried.method_state,
            opt_state=opt_state,
            ema=average,
        ), metrics


@dataclasses.dataclass(frozen=True, eq=False)
class SharedTeacherStep:
    """A training step of several students that runs the teacher's forward pass once.

    All students are given the same images. States and metrics are tuples in the order of `steps`.

    The compiled step computes one student after the other: their methods have different parameters,
    and `jax.vmap` over students of one method is estimated to be slower
    (experiments/benchmarks/batched_students.py).

    Attributes:
      steps: with the same teacher or none, augmentation, mixing and devices. `accumulate` has to be
        1 unless there is a single step.

    Raises:
      UserError: steps differ, or accumulate.
    """

    steps: tuple[TrainStep, ...]

    def __post_init__(self):
        first = self.steps[0]
        for step in self.steps:
            if step.teacher not in (None, self.teacher):
                raise UserError("students under one teacher must not differ in teacher")
            for field in ("augment", "mix", "axis", "steps_per_epoch"):
                if getattr(step, field) != getattr(first, field):
                    raise UserError(f"students under one teacher must not differ in {field}")
            check_shared_batch(len(self.steps), step.accumulate)

    @property
    def teacher(self) -> Network | None:
        """The teacher, if any student has one."""
        return next((step.teacher for step in self.steps if step.teacher), None)

    def init(self, rng: Array, info: DataInfo, batch_size: int) -> tuple[TrainState, ...]:
        """Initial states, all from the same key."""
        return tuple(step.init(rng, info, batch_size) for step in self.steps)

    def __call__(
        self, states: tuple[TrainState, ...], teacher_variables: PyTree, batch: Batch, rng: Array
    ) -> tuple[tuple[TrainState, ...], tuple[Metrics, ...]]:
        """As `TrainStep.__call__`."""
        first = self.steps[0]
        if len(self.steps) == 1:
            state, metrics = first(states[0], teacher_variables, batch, rng)
            return (state,), (metrics,)
        rng = jax.random.fold_in(rng, states[0].step)
        batch, dropout = first.prepare(batch, rng)
        t = _answer(self.teacher, teacher_variables, batch.image)
        out = []
        for step, state in zip(self.steps, states, strict=True):
            carried = Carried(state.batch_stats, state.method_state)
            grads = step.gradient(state, carried, t, batch, dropout, _method_key(rng))
            out.append(step.update(state, *grads))
        return tuple(state for state, _ in out), tuple(metrics for _, metrics in out)


def check_shared_batch(students: int, accumulate: int) -> None:
    """Raises UserError if the batch that several students share is split into micro-batches."""
    if students > 1 and accumulate > 1:
        raise UserError(
            "accumulate splits the batch that students under one teacher share; set accumulate=1"
            " or train them apart"
        )


class Carried(NamedTuple):
    """State that is passed from one micro-batch to the next."""

    batch_stats: PyTree
    method_state: PyTree


def _student(params: PyTree, batch_stats: PyTree) -> PyTree:
    return {"params": params["student"], "batch_stats": batch_stats}


def student_variables(state: TrainState) -> PyTree:
    """Variables of the student for evaluation and export: the moving average, if there is one."""
    return state.ema or _student(state.params, state.batch_stats)


def _answer(teacher: Network | None, variables: PyTree, image: Array) -> ModelOut | None:
    return teacher.infer(variables, image) if teacher else None


def _method_key(rng: Array) -> Array:
    return jax.random.fold_in(rng, METHOD)


def _accumulated(
    gradient: Callable[..., tuple[Carried, PyTree, Metrics]],
    carried: Carried,
    examples: PyTree,
    rng: Array,
    n: int,
) -> tuple[Carried, PyTree, Metrics]:
    """The mean of `gradient` over `n` micro-batches, one at a time to save memory."""
    parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), examples)

    def body(carry, item):
        carried, sums = carry
        i, part = item
        carried, *values = gradient(carried, *part, jax.random.fold_in(rng, i))
        return (carried, jax.tree.map(jnp.add, sums, values)), None

    first = jax.tree.map(lambda x: x[0], parts)
    _, *shapes = jax.eval_shape(gradient, carried, *first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (carried, sums), _ = jax.lax.scan(body, (carried, zeros), (jnp.arange(n), parts))
    grads, metrics = jax.tree.map(lambda x: x / n, sums)
    return carried, grads, metrics
