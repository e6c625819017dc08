"""The names that everything passes. No behaviour lives here.

Letters in shapes, here and everywhere: B examples, H W height and width, C channels, K classes,
N examples of a training set. Images and features are NHWC.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]  # scalars, and arrays such as an attention matrix


class ModelOut(NamedTuple):
    """What every network returns, always.

    Attributes:
      logits: [B, K], float32.
      feats: NHWC arrays under the same keys in every network: `stem`, `stage1`..`stageN` (the last
        output at each resolution), `block1`..`blockM` (every residual block's output after its
        activation), `pooled` [B, C], and a twin `stageN_pre` wherever an activation follows the
        stage's last sum. What nobody reads costs nothing under `jax.jit`.
    """

    logits: Array
    feats: dict[str, Array]


class Batch(NamedTuple):
    """Examples of one step.

    Attributes:
      image: [B, H, W, 3]; uint8 from the source, float32 in 0..1 once augmented.
      label: [B] int32 class numbers, or [B, K] float32 class probabilities (mixup, CutMix).
      index: [B] int32, each example's own number in the training set.
      mask: [B] bool, false for padding; evaluation only.
    """

    image: Array
    label: Array
    index: Array
    mask: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class DataInfo:
    """What is known about a data set before a single image is read.

    Attributes:
      name: as in `config.data.name`.
      image_shape: (H, W, 3) of a training image.
      class_names: one per class; their number is the number of classes.
      num_train, num_test: examples in the two splits.
      mean, std: per channel, of pixels in 0..1.
      train_label: [N] int32 labels of the training set in index order where they are known
        without reading images (CRD draws its negatives from other classes), else None.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_label: Any = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and so everything that a checkpoint holds.

    The teacher is not in here: its variables are an argument of the step.

    Attributes:
      step: [] int32, optimiser steps taken.
      params: {"student": ..., "method": {term: ...}}, what the optimiser moves.
      batch_stats: the student's batch norm statistics.
      method_state: {term: ...}, what methods carry from step to step (CRD's memory bank).
      opt_state: optax's.
      ema: {"params", "batch_stats"} of the student, averaged over the steps, or {} for none.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    method_state: PyTree
    opt_state: PyTree
    ema: PyTree
