"""The interface of a method: a frozen dataclass of hyper-parameters and two pure functions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

from atkd_jax.nn.collectives import Collectives
from atkd_jax.ranges import check_fields
from atkd_jax.types import Array, Batch, DataInfo, ModelOut, PyTree


class Extras(NamedTuple):
    """A method's own arrays.

    Attributes:
      params: learned together with the student (regressors, embeddings, queries and keys).
      state: carried from call to call (memory banks, running means, batch norm statistics).
    """

    params: PyTree = {}
    state: PyTree = {}


class Context(NamedTuple):
    """The run, as far as methods depend on it.

    Attributes:
      rng: a key for this call and method, the same on every device.
      step: [] int32, optimiser steps taken so far; the same for all micro-batches of a step.
      steps_per_epoch: optimiser steps in an epoch.
      axis: collectives over the devices, for statistics of the whole batch.
    """

    rng: Array
    step: Array | int = 0
    steps_per_epoch: int = 1
    axis: Collectives = Collectives()


class LossOut(NamedTuple):
    """The result of one call.

    Attributes:
      loss: [] float32, unweighted: the objective multiplies.
      state: the next `Extras.state`: same structure, shapes and dtypes.
      metrics: averaged over an epoch; scalars go to the log, other arrays to a file.
    """

    loss: Array
    state: PyTree = {}
    metrics: dict[str, Array] = {}


@dataclasses.dataclass(frozen=True)
class Method:
    """A distillation loss: fields are hyper-parameters, subclasses override `loss` (and `init`).

    A loss means the same however a batch is split (tests/test_methods.py checks every method):

    - On several devices `loss` is called with a device's own examples, or with all examples if
      `needs_global_batch`. A statistic of all examples that the loss itself depends on is
      `ctx.axis.mean(x)`.
    - State is equal on all devices. The objective averages floating-point state over the devices,
      so running means need no care. What cannot be averaged (counts, memory banks) is computed
      from gathered values: set `needs_global_batch`, or use `ctx.axis.gather`.
    - With gradient accumulation `loss` is called once per micro-batch, and its state is carried
      from one micro-batch to the next. Time is `ctx.step`, never a number of calls; `PeriodMean`
      averages over the calls of a step or an epoch.

    Fields that are a `ranges.setting` are checked when an instance is made.

    Attributes:
      needs_global_batch: the loss compares examples with each other; excludes accumulation.
      needs_hard_labels: the loss takes class numbers only, not the mixtures of mixup and CutMix.
    """

    needs_global_batch: ClassVar[bool] = False
    needs_hard_labels: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self)

    def init(self, rng: Array, t: ModelOut, s: ModelOut, data: DataInfo) -> Extras:
        """Checks that the loss fits the two networks and makes its parameters and state.

        Args:
          rng: a key.
          t, s: the teacher's and the student's output for a micro-batch of all devices, as
            `jax.ShapeDtypeStruct`s.
          data: the training set.

        Raises:
          UserError: a tap is missing or its shape does not fit.
        """
        del rng, t, s, data
        return Extras()

    def loss(self, extras: Extras, t: ModelOut, s: ModelOut, batch: Batch, ctx: Context) -> LossOut:
        """The unweighted loss of one batch.

        Args:
          extras: of `init`, with the state that the last call returned.
          t, s: the teacher's and the student's output; the objective has stopped the teacher's
            gradient.
          batch: labels and the examples' numbers in the training set.
          ctx: the run.
        """
        raise NotImplementedError
