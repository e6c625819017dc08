"""What a distillation method is: a frozen dataclass of hyper-parameters and two pure functions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

from atkd_jax.nn.collectives import Collectives
from atkd_jax.ranges import check_fields
from atkd_jax.types import Array, Batch, DataInfo, ModelOut, PyTree


class Extras(NamedTuple):
    """What a method owns besides its hyper-parameters.

    Attributes:
      params: learned together with the student (regressors, embeddings, queries and keys).
      state: carried from step to step (memory banks, running means, batch norm statistics).
    """

    params: PyTree = {}
    state: PyTree = {}


class Context(NamedTuple):
    """All that a method may know of the run.

    Attributes:
      rng: a key for this step and method, the same on every device.
      step: [] int32, optimiser steps taken so far; the same for all micro-batches of a step.
      steps_per_epoch: optimiser steps in an epoch.
      axis: collectives over the devices, for statistics of the whole batch.
    """

    rng: Array
    step: Array | int = 0
    steps_per_epoch: int = 1
    axis: Collectives = Collectives()


class LossOut(NamedTuple):
    """What one call of a method returns.

    Attributes:
      loss: [] float32, unweighted: the objective multiplies.
      state: the next `Extras.state`: same structure, shapes and dtypes.
      metrics: what to log, averaged over an epoch; scalars go to the log, other arrays to a file.
    """

    loss: Array
    state: PyTree = {}
    metrics: dict[str, Array] = {}


@dataclasses.dataclass(frozen=True)
class Method:
    """A distillation loss as a value. Subclasses add fields and override `loss` (and `init`).

    Fields that are a `ranges.setting` are checked when an instance is made.

    State is the same on every device after a step. The objective averages floating-point state
    over the devices, so running means of a device's own examples need no care. State that cannot
    be averaged (integers, memory banks) has to be computed from gathered values: set
    `needs_global_batch`, or use `ctx.axis.gather`.

    Attributes:
      needs_global_batch: the loss compares examples with each other, so that on several devices it
        is given the gathered global batch to stay the same loss.
      needs_hard_labels: the loss takes class numbers only, not the mixtures of two classes that
        mixup and CutMix make.
    """

    needs_global_batch: ClassVar[bool] = False
    needs_hard_labels: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self)

    def init(self, rng: Array, t: ModelOut, s: ModelOut, data: DataInfo) -> Extras:
        """Checks that the loss fits the two networks and makes its parameters and state.

        Args:
          rng: a key.
          t, s: the teacher's and the student's output for the global batch, as
            `jax.ShapeDtypeStruct`s: shapes are read from the networks, never typed by hand.
          data: the training set.

        Raises:
          UserError: a tap is missing or its shape does not fit.
        """
        del rng, t, s, data
        return Extras()

    def loss(self, extras: Extras, t: ModelOut, s: ModelOut, batch: Batch, ctx: Context) -> LossOut:
        """The unweighted loss of one batch.

        The teacher's side is a constant: the objective has already stopped its gradient.
        """
        raise NotImplementedError
