"""One step function, and the same parameters whatever runs it."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest
from small_runs import difference

from atkd_jax import models
from atkd_jax.data.augment import Augment
from atkd_jax.data.memory import Arrays, MemorySource
from atkd_jax.methods import create
from atkd_jax.models.network import Network
from atkd_jax.nn.layers import conv_init
from atkd_jax.nn.ops import torch_uniform_init
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training.evaluate import make_evaluate
from atkd_jax.training.loader import MemoryLoader
from atkd_jax.training.multi_step import make_multi_step
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import TrainStep
from atkd_jax.types import DataInfo

STEPS, BATCH, SIZE = 5, 16, 8
STATS = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TERMS = {
    "kd": Term(0.9, create("kd")),
    "at": Term(1000.0, create("at")),
    "self_attention": Term(1.0, create("self_attention")),
    "sp": Term(100.0, create("sp")),
    "rkd": Term(1.0, create("rkd")),
}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Halves what this file takes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def source():
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (STEPS * BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    label = rng.randint(0, 10, STEPS * BATCH).astype(np.int32)
    names = tuple("abcdefghij")
    info = DataInfo("noise", (SIZE, SIZE, 3), names, STEPS * BATCH, 27, *STATS, label)
    return MemorySource(info, Arrays(image, label), Arrays(image[:27], label[:27]))


@functools.cache
def trained(mode, devices, synchronised=True, loop=False):
    """Parameters after five steps, each step's metrics, the test result and how often traced."""
    parallel = Parallel(mode, jax.devices()[:devices])
    data = source()
    loader = MemoryLoader(data, parallel, BATCH, seed=0)
    module = functools.partial(models.create, num_classes=10)
    bn_axis = parallel.axis.name if synchronised else None
    student = Network(module("resnet8", bn_axis=bn_axis), *STATS)
    teacher = Network(module("resnet14"), *STATS)
    objective = Objective(0.1, TERMS)
    tx = optax.sgd(0.005, momentum=0.9)  # float32 noise grows with the rate
    aug = Augment(pad=1, flip=True)
    key = jax.random.key(0)

    step = TrainStep(student, teacher, objective, tx, STEPS, augment=aug, axis=parallel.axis)
    state = parallel.init(lambda: step.init(key, data.info, BATCH))
    weights = parallel.init(lambda: teacher.module.init(key, np.zeros((1, SIZE, SIZE, 3), "f4")))
    traces = 0

    def counted(*args):
        nonlocal traces
        traces += 1
        return step(*args)

    multi_step = parallel.spmd(make_multi_step(counted, loader.fetch), sharded=(3,), donate=(0,))
    metrics = []
    for stack, start, stop in loader.train(0, 0, 3 if loop else 1):
        before = state
        state, sums, _, taken = multi_step(
            state, weights, loader.train_data, stack, np.int32(start), np.int32(stop), np.int32(7)
        )
        metrics.append(jax.device_get(sums))
        assert int(taken) == stop - start
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
    variables = {"params": state.params["student"], "batch_stats": state.batch_stats}
    test = make_evaluate(student, loader, parallel, batch_size=8)(variables)
    return jax.device_get(variables | {"method": state.params["method"]}), metrics, test, traces


def assert_same_metrics(ours, theirs, rtol):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol, atol=1e-6, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("mode, devices", [("shard_map", 1), ("shard_map", 8), ("pmap", 4)])
def test_every_way_to_run_the_step_gives_the_same_parameters(mode, devices):
    reference, metrics, test, _ = trained("none", 1)
    variables, ours, our_test, traces = trained(mode, devices)
    assert difference(reference, variables) < 1e-5
    assert_same_metrics(ours, metrics, 1e-5)
    np.testing.assert_allclose(list(our_test.values()), list(test.values()), rtol=1e-5)
    assert traces == 1


@pytest.mark.slow
def test_batch_norm_of_each_device_alone_is_another_training():
    assert difference(trained("none", 1)[0], trained("shard_map", 8, False)[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode, devices", [("shard_map", 8), ("pmap", 4), ("none", 1)])
def test_several_steps_in_one_call_are_the_same_steps(mode, devices):
    variables, ours, _, _ = trained(mode, devices, loop=True)
    reference, one_by_one, _, _ = trained(mode, devices)
    assert difference(reference, variables) < 1e-5
    sums = [
        {k: sum(m[k] for m in part) for k in part[0]} for part in (one_by_one[:3], one_by_one[3:])
    ]
    assert_same_metrics(ours, sums, 1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size 6 is not divisible by 4 devices"):
        Parallel("shard_map", jax.devices()[:4]).check_batch(6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="parallel='pmapp' is unknown"):
        Parallel("pmapp")


def test_quickly_compiled_initial_values_have_the_same_bits():
    def draw(seed):
        key, shape = jax.random.key(seed), (2, 2, 3, 5)
        drawn = conv_init(key, shape), torch_uniform_init(3)(key, shape)
        return drawn, jax.random.truncated_normal(key, -2, 2, shape)

    seed = np.int32(3)
    usual = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 3})
    chex.assert_trees_all_equal(Parallel("none").init(draw, seed), usual(seed))
