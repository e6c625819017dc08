"""What a distillation method is: a frozen dataclass of hyper-parameters and two pure functions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

from atkd_jax.ranges import check_fields
from atkd_jax.types import Array, Batch, DataSpec, ModelOut, PyTree


class Extras(NamedTuple):
    """What a method owns besides its hyper-parameters.

    Attributes:
      params: learned together with the student (regressors, embeddings, queries and keys).
      state: goes into `loss` and comes out of it (memory banks, batch norm statistics).
    """

    params: PyTree = {}
    state: PyTree = {}


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

    Attributes:
      couples_examples: the loss mixes rows of the batch, so that on several devices it has to see
        the gathered global batch to stay the same loss.
      needs_one_class: the loss takes labels as class numbers only, not the mixtures of two classes
        that mixup and CutMix make.
    """

    couples_examples: ClassVar[bool] = False
    needs_one_class: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self)

    def init(self, rng: Array, t: ModelOut, s: ModelOut, data: DataSpec) -> Extras:
        """Checks that the loss fits the two networks and makes its parameters and state.

        Args:
          rng: a key.
          t, s: the teacher's and the student's output for the global batch, as
            `jax.ShapeDtypeStruct`s: shapes are read from the networks, never typed by hand.
          data: the training set.

        Raises:
          ValueError: a tap is missing or its shape does not fit.
        """
        del rng, t, s, data
        return Extras()

    def loss(self, extras: Extras, t: ModelOut, s: ModelOut, batch: Batch, rng: Array) -> LossOut:
        """The unweighted loss of one batch.

        The teacher's side is a constant: the objective has already stopped its gradient.
        """
        raise NotImplementedError
