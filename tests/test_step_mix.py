"""Mixup and CutMix inside the step: both networks see the mixture, whatever the devices."""

import jax
import numpy as np
import optax
import pytest
from test_parallel import BATCH, SIZE, STATS, source

from atkd_jax import methods, models
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.models.network import Network
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training.loader import MemoryFeed
from atkd_jax.training.multi_step import make_multi_step
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import init_state, make_train_step


def first_step(devices, mixing):
    parallel = Parallel("shard_map", jax.devices()[:devices])
    data = source()
    feed = MemoryFeed(data, parallel, BATCH, seed=0)
    student = Network(models.create("resnet8", 10, bn_axis=parallel.axis_name), *STATS)
    teacher = Network(models.create("resnet8", 10), *STATS)
    objective = Objective(1.0, {"kd": Term(1.0, methods.create("kd"))})
    tx, key = optax.sgd(0.01), jax.random.key(0)
    state = parallel.init(
        lambda: init_state(student, teacher, objective, tx, data.info, BATCH, key)
    )
    master = parallel.init(lambda: teacher.module.init(key, np.zeros((1, SIZE, SIZE, 3), "f4")))
    step = make_train_step(student, teacher, objective, tx, Augment(), parallel.axis, mixing=mixing)
    dispatch = parallel.spmd(make_multi_step(step, feed.fetch), sharded=(3,))
    stack, start, stop = next(feed.train(0, 0, 1))
    args = (state, master, feed.train_data, stack, np.int32(start), np.int32(stop), np.int32(0))
    return {key: float(value) for key, value in dispatch(*args)[1].items()}


@pytest.mark.slow
def test_mixing_does_not_depend_on_the_devices_and_changes_the_loss():
    mixing = Mix(mixup=1.0)
    alone, together = first_step(1, mixing), first_step(4, mixing)
    assert alone == pytest.approx(together, rel=1e-5)
    assert abs(first_step(1, Mix())["ce"] - alone["ce"]) > 1e-3
