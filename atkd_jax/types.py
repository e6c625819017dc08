"""Types shared by all modules, without behaviour.

Letters in shapes, here and elsewhere: B examples, H height, W width, C channels, K classes, N
examples of a training set. Images and features are NHWC.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]  # scalars, and arrays such as an attention matrix


class ModelOut(NamedTuple):
    """The output of every network.

    Attributes:
      logits: [B, K], float32.
      feats: NHWC arrays under the same keys in every network: `stem`, `stage1`..`stageN` (the last
        output at each resolution), `block1`..`blockM` (every residual block's output after its
        activation), `pooled` [B, C], and `stageN_pre` wherever an activation follows the stage's
        last sum. Under `jax.jit`, unused features cost nothing.
    """

    logits: Array
    feats: dict[str, Array]


class Batch(NamedTuple):
    """The examples of one step.

    Attributes:
      image: [B, H, W, 3]; uint8 from the source, float32 in 0..1 after augmentation.
      label: [B] int32 class numbers, or [B, K] float32 class probabilities (mixup, CutMix).
      index: [B] int32, position in the training set.
      mask: [B] bool, false for padding; evaluation only.
    """

    image: Array
    label: Array
    index: Array  # type: ignore[assignment]  # hides tuple.index
    mask: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class DataInfo:
    """The facts of a data set that are known before any image is read.

    Attributes:
      name: as in `config.data.name`.
      image_shape: (H, W, 3) of a training image.
      class_names: one per class.
      num_train, num_test: numbers of examples.
      mean, std: per channel, of pixels in 0..1.
      train_label: [N] int32 labels of the training set in index order, if they are known without
        reading images (CRD draws its negatives from other classes), else None.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_label: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and hence the content of a checkpoint.

    The teacher is not part of it: its variables are an argument of the step.

    Attributes:
      step: [] int32, the number of optimiser steps taken.
      params: {"student": ..., "method": {term: ...}}, updated by the optimiser.
      batch_stats: batch norm statistics of the student.
      method_state: {term: ...}, carried by methods from step to step (CRD's memory bank).
      opt_state: of Optax.
      ema: moving averages {"params", "batch_stats"} of the student, or {}.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    method_state: PyTree
    opt_state: PyTree
    ema: PyTree
