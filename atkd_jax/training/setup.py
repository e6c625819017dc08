"""Sets up the training of one student from its configuration: step, state, schedule, devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from atkd_jax.errors import UserError
from atkd_jax.runtime import topology
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config, settings, teachers
from atkd_jax.training.multi_step import make_multi_step
from atkd_jax.training.step import Step, TrainStep
from atkd_jax.types import Array, Batch, DataInfo, PyTree, TrainState


class Setup(NamedTuple):
    """What trains one student, without data and weights.

    Attributes:
      step: one training step on one device.
      init_state: (seed) -> TrainState at step 0.
      abstract_state: shapes and dtypes of a TrainState.
      lr: learning rate as a function of the step.
    """

    step: TrainStep
    init_state: Callable[[Array | np.int32], TrainState]
    abstract_state: PyTree
    lr: optax.Schedule


def make_setup(
    config: ConfigDict, parallel: Parallel, info: DataInfo, steps_per_epoch: int
) -> Setup:
    """Sets up a student's training. Compiles nothing and reads no images.

    Raises:
      UserError: something in the configuration is unknown or does not fit.
    """
    settings.check_steps(config, steps_per_epoch)
    bn_axis = parallel.axis.name if config.sync_batch_norm else None
    objective = from_config.objective(config, steps_per_epoch)
    step = TrainStep(
        student=from_config.network(config, config.student, info, bn_axis),
        teacher=teachers.describe(config, info) if objective.terms else None,
        objective=objective,
        tx=from_config.optimizer(config, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        augment=from_config.augment(config),
        mix=from_config.mix(config),
        axis=parallel.axis,
        accumulate=config.accumulate,
        ema=config.ema,
    )

    def init_state(seed: Array | np.int32) -> TrainState:
        return step.init(jax.random.key(seed), info, config.batch_size)

    return Setup(
        step=step,
        init_state=init_state,
        abstract_state=jax.eval_shape(
            init_state, np.int32(0)
        ),  # raises errors about taps and shapes
        lr=from_config.schedule(config, steps_per_epoch),
    )


def make_parallel(config: ConfigDict) -> Parallel:
    """The devices of a run, or those of `config.topology`.

    Raises:
      UserError: a setting is wrong, or the batch cannot be split over the devices.
    """
    parallel = Parallel(
        config.parallel, topology.devices(config.topology) if config.topology else None
    )
    parallel.check_batch(config.batch_size)
    parts = len(parallel.devices) * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"batch_size {config.batch_size} is not divisible by {len(parallel.devices)} devices"
            f" times accumulate {config.accumulate}; choose a multiple of {parts}"
        )
    return parallel


def steps_per_call(config: ConfigDict, parallel: Parallel, in_memory: bool) -> int:
    """Number of steps in one call; one for streams, whose batches are large."""
    steps = config.steps_per_dispatch or (parallel.steps_per_call if in_memory else 1)
    if config.checkpoint.every_steps:  # checkpoints are written between calls
        steps = min(steps, config.checkpoint.every_steps)
    return steps


def compile_steps(
    step: Step, parallel: Parallel, fetch: Callable[[PyTree, PyTree], Batch]
) -> Callable:
    """`multi_step.make_multi_step` on all devices; the state's buffers are donated."""
    return parallel.spmd(make_multi_step(step, fetch), sharded=(3,), donate=(0,))
