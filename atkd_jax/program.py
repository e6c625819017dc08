"""What a configuration means: data on the devices, two networks, and the compiled step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import build, settings, teacher
from atkd_jax.dispatch import make_dispatch
from atkd_jax.feed import MemoryFeed, StreamFeed, make_feed, steps_per_dispatch
from atkd_jax.parallel import Parallel
from atkd_jax.step import Network, init_state, make_train_step
from atkd_jax.types import PyTree, TrainState


class Program(NamedTuple):
    """Everything that training needs but weights.

    Attributes:
      parallel: the devices.
      feed: the data.
      student, teacher: the networks; no teacher if no term asks for one.
      fresh: () -> TrainState at step 0, replicated.
      like: shapes and dtypes of a TrainState.
      step_for: teacher -> the step of one device, see `make_train_step`; what is called as the
        teacher is, such as one that several students share, may stand in its place.
      dispatch: (state, teacher_variables, data, stack, start, stop, seed) -> (state, sums, last),
        see `dispatch.make_dispatch`; the state's buffers are donated.
      steps_per_dispatch: how many steps it may be asked for at once.
      lr: learning rate as a function of the step.
    """

    parallel: Parallel
    feed: MemoryFeed | StreamFeed
    student: Network
    teacher: Network | None
    fresh: Callable[[], TrainState]
    like: PyTree
    step_for: Callable[[Network | None], Callable]
    dispatch: Callable
    steps_per_dispatch: int
    lr: Callable


def make_program(config: ConfigDict) -> Program:
    """Reads the data and builds the rest; compiles nothing yet.

    Raises:
      ValueError: something in the configuration is unknown or does not fit.
    """
    parallel = make_parallel(config)
    feed = make_feed(build.source(config), parallel, config.batch_size, config.seed)
    return assemble(config, parallel, feed)


def make_parallel(config: ConfigDict) -> Parallel:
    """The devices; ValueError if a setting is wrong or the batch cannot be spread over them."""
    settings.check(config)
    parallel = Parallel(config.parallel)
    parallel.check_batch(config.batch_size)
    parts = len(parallel.devices) * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size {config.batch_size} is not divisible by {len(parallel.devices)} devices"
            f" times accumulate {config.accumulate}; choose a multiple of {parts}"
        )
    return parallel


def assemble(config: ConfigDict, parallel: Parallel, feed: Any) -> Program:
    """Everything but the data, of which shapes and numbers are enough here."""
    settings.check_steps(config, feed.steps_per_epoch)
    bn_axis = parallel.axis_name if config.sync_batch_norm else None
    student = build.network(config, config.student, feed.spec, bn_axis)
    objective = build.objective(config, feed.steps_per_epoch, parallel.axis_name)
    master = teacher.describe(config, feed.spec) if objective.terms else None
    tx = build.optimizer(config, feed.steps_per_epoch)
    aug, mixing = build.augment(config), build.mixing(config)
    steps = config.steps_per_dispatch or steps_per_dispatch(feed, parallel)
    if config.checkpoint.every_steps:  # between two dispatches is when a run can be saved
        steps = min(steps, config.checkpoint.every_steps)

    def step_for(network: Network | None) -> Callable:
        return make_train_step(
            student,
            network,
            objective,
            tx,
            aug,
            parallel.axis,
            accumulate=config.accumulate,
            ema=config.ema,
            mixing=mixing,
        )

    def fresh():
        key = jax.random.key(np.int32(config.seed))
        seen = config.batch_size // config.accumulate
        return init_state(student, master, objective, tx, feed.spec, seen, key, bool(config.ema))

    return Program(
        parallel=parallel,
        feed=feed,
        student=student,
        teacher=master,
        fresh=lambda: parallel.init(fresh),
        like=jax.eval_shape(fresh),  # complaints about taps and shapes come from here
        step_for=step_for,
        dispatch=parallel.spmd(
            make_dispatch(step_for(master), feed.fetch), spread=(3,), donate=(0,)
        ),
        steps_per_dispatch=steps,
        lr=build.schedule(config, feed.steps_per_epoch),
    )
