"""What a step can be told: micro-batches, an average of the student, bfloat16, batch norm alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from atkd_jax.training.program import make_parallel, make_program
from small_runs import small_config, write_npz

from atkd_jax import methods, models
from atkd_jax.data.augment import Augment
from atkd_jax.methods import create
from atkd_jax.models.network import Network
from atkd_jax.runtime import checkpoint
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import teachers
from atkd_jax.training.loop import train_and_evaluate
from atkd_jax.training.multi_step import make_multi_step
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import init_state, make_train_step, student_variables
from atkd_jax.types import Batch, DataInfo, ModelOut

BATCH, SIZE, CLASSES, STEPS = 16, 8, 5, 3
STATS = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NUM = 64
LABELS = np.arange(NUM).astype(np.int32) % CLASSES
SPEC = DataInfo("noise", (SIZE, SIZE, 3), tuple("abcde"), NUM, NUM, *STATS, train_label=LABELS)
TERMS = {"kd": Term(0.9, create("kd")), "at": Term(10.0, create("at"))}


class Tiny(nn.Module):
    """Two stages, with batch norm or without."""

    norm: bool = False
    bn_axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False, rng=None):
        feats = {}
        for i in (1, 2):
            x = nn.Conv(6, (3, 3), strides=(i, i), name=f"conv{i}")(x)
            if self.norm:
                axis = self.bn_axis if train else None
                x = nn.BatchNorm(not train, momentum=0.9, axis_name=axis, name=f"bn{i}")(x)
            x = feats[f"stage{i}"] = nn.relu(x)
        feats["pooled"] = x.mean((1, 2))
        return ModelOut(nn.Dense(CLASSES, name="fc")(feats["pooled"]), feats)


def batches():
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (STEPS, BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    index = rng.permutation(NUM)[: STEPS * BATCH].reshape(STEPS, BATCH).astype(np.int32)
    return Batch(image, LABELS[index], index)


@functools.cache
def states(devices, accumulate, norm=False, ema=0.0):
    """The state before the first step and after each, with KD and AT on augmented images."""
    parallel = Parallel("shard_map" if devices > 1 else "none", jax.devices()[:devices])
    student = Network(Tiny(norm, parallel.axis_name), *STATS)
    master = Network(Tiny(norm), *STATS)
    objective, tx = Objective(0.5, TERMS, label_smoothing=0.1), optax.sgd(0.1, momentum=0.9)
    aug = Augment(pad=1, flip=True)
    step = make_train_step(
        student, master, objective, tx, aug, parallel.axis, accumulate=accumulate, ema=ema
    )
    key = jax.random.key(1)
    seen = BATCH // accumulate
    state = parallel.init(
        lambda: init_state(student, master, objective, tx, SPEC, seen, key, bool(ema))
    )
    weights = parallel.init(
        lambda: master.module.init(jax.random.key(2), jnp.zeros((1, *SPEC.image_shape)))
    )
    dispatch = parallel.spmd(make_multi_step(step, lambda _, batch: batch), sharded=(3,))
    stack = parallel.shard_batches(batches())
    found, metrics = [jax.device_get(state)], []
    for i in range(STEPS):
        i = np.int32(i)
        state, sums, _ = dispatch(state, weights, (), stack, i, i + 1, np.int32(7))
        found.append(jax.device_get(state))
        metrics.append(jax.device_get(sums))
    return found, metrics


def assert_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_micro_batches_without_batch_norm_are_the_whole_batch(devices):
    whole, metrics = states(1, 1)
    parts, metrics_of_parts = states(devices, 4)
    assert_close(whole[-1].params, parts[-1].params, 1e-5)
    assert_close(metrics, metrics_of_parts, 1e-5)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), whole[0].params, whole[-1].params)
    assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.slow
def test_micro_batches_hold_the_same_examples_on_any_number_of_devices():
    """Which batch norm would tell."""
    one, _ = states(1, 2, norm=True)
    four, _ = states(4, 2, norm=True)
    assert_close(one[-1].params, four[-1].params, 1e-5)
    assert_close(one[-1].batch_stats, four[-1].batch_stats, 1e-5)


@pytest.mark.slow
def test_micro_batches_and_batch_norm_are_another_training_than_the_whole_batch():
    whole, parts = (states(1, n, norm=True)[0][-1].params for n in (1, 2))
    difference = jax.tree.map(lambda x, y: np.abs(x - y).max(), whole, parts)
    assert max(jax.tree.leaves(difference)) > 1e-3


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt", "crd"])
def test_a_method_that_compares_examples_refuses_micro_batches(name):
    network = Network(Tiny(), *STATS)
    objective = Objective(1.0, {name: Term(1.0, create(name))})
    with pytest.raises(ValueError, match=f"{name} compares the examples .* set accumulate=1"):
        make_train_step(network, network, objective, optax.sgd(0.1), Augment(), accumulate=2)


def test_a_batch_that_micro_batches_do_not_divide_is_refused(tmp_path):
    config = small_config(tmp_path / "no.npz")
    config.accumulate = 3
    with pytest.raises(ValueError, match="batch_size 16 is not divisible by 1 devices times"):
        make_parallel(config)


@pytest.mark.slow
def test_the_average_follows_its_definition():
    found, _ = states(1, 1, norm=True, ema=0.3)
    expected = found[0].params["student"]
    for step, state in enumerate(found[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        now = state.params["student"]
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, now)
        assert_close(state.ema["params"], expected, 1e-6)
        assert student_variables(state) is state.ema
    mean = found[-1].ema["batch_stats"]["bn1"]["mean"]
    assert np.abs(mean - found[-1].batch_stats["bn1"]["mean"]).max() > 1e-4


@pytest.mark.slow
def test_no_average_is_kept_unless_asked_for():
    state = states(1, 1)[0][-1]
    assert state.ema == {}
    assert student_variables(state)["params"] is state.params["student"]
    with pytest.raises(ValueError, match="ema 1.0 is not in 0..1"):
        make_train_step(Network(Tiny(), *STATS), None, Objective(), None, Augment(), ema=1.0)


@pytest.mark.slow
def test_the_average_is_tested_and_exported(tmp_path):
    config = small_config(write_npz(tmp_path / "data.npz"))
    config.epochs, config.ema, config.accumulate = 1, 0.9, 2
    config.checkpoint.keep = 1
    train_and_evaluate(config, tmp_path / "run")
    program = make_program(config)
    checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    sharding = program.parallel.replicated
    state, _ = checkpoints.restore(checkpoints.latest(), program.like, sharding)
    checkpoints.close()
    like = teachers.variables_like(program.student, program.feed.info)
    exported = checkpoint.load_export(tmp_path / "run" / "export", like)
    assert_close(exported, jax.device_get(state.ema), 0)
    kernel = state.params["student"]["stem_conv"]["kernel"]
    assert np.abs(exported["params"]["stem_conv"]["kernel"] - kernel).max() > 0


@pytest.mark.parametrize("synchronised", [True, False])
def test_batch_norm_of_each_device_alone_is_one_key(tmp_path, synchronised):
    config = small_config(write_npz(tmp_path / "data.npz"))
    config.parallel, config.sync_batch_norm = "shard_map", synchronised
    axis = make_program(config).student.module.bn_axis
    assert axis == ("batch" if synchronised else None)


def test_another_teacher_may_stand_in_the_step_of_a_program(tmp_path):
    config = small_config(write_npz(tmp_path / "data.npz"), "kd")
    config.data.mix.mixup = 1.0
    program = make_program(config)
    asked = []

    class StandIn:
        def apply(self, variables, image, train):
            asked.append((variables, image.shape, train))
            return program.teacher.module.init_with_output(jax.random.key(0), image)[0]

    batch = Batch(jnp.zeros((16, 8, 8, 3), jnp.uint8), *jnp.zeros((2, 16), jnp.int32))
    step = program.step_for(StandIn())
    state, metrics = jax.eval_shape(step, program.like, (), batch, jax.random.key(0))
    assert asked == [((), (16, 8, 8, 3), False)]
    assert jax.tree.structure(state) == jax.tree.structure(program.like) and "kd" in metrics


@functools.cache
def networks(dtype):
    make = functools.partial(models.create, num_classes=CLASSES, dtype=dtype)
    return Network(make("resnet8"), *STATS), Network(make("resnet14"), *STATS)


def bfloat16_step(names):
    student, master = networks(jnp.bfloat16)
    objective = Objective(1.0, {name: Term(1.0, create(name)) for name in names})
    tx = optax.sgd(0.01, momentum=0.9)
    key = jax.random.key(0)
    aug = Augment(pad=1, flip=True)
    step = make_train_step(student, master, objective, tx, aug)

    def run():
        state = init_state(student, master, objective, tx, SPEC, BATCH, key)
        weights = master.module.init(key, jnp.zeros((1, *SPEC.image_shape)))
        first = jax.tree.map(lambda x: jnp.asarray(x[0]), batches())
        return state, step(state, weights, first, key)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_state_and_losses_are_float32_when_networks_compute_in_bfloat16(name):
    before, (after, metrics) = jax.eval_shape(bfloat16_step((name,)))
    assert jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(lambda x: x.dtype, after)
    floats = [x for x in jax.tree.leaves((after, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats and all(x.dtype == jnp.float32 for x in floats)


@pytest.mark.slow
def test_a_bfloat16_step_is_a_rounded_float32_step():
    _, (state, metrics) = jax.jit(bfloat16_step(("kd", "at", "self_attention")))()
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state, metrics)))
    student, _ = networks(jnp.float32)
    rough, _ = networks(jnp.bfloat16)
    image = batches().image[0] / np.float32(255)
    variables = student_variables(state)
    exact, rounded = (network.apply(variables, image).logits for network in (student, rough))
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max()
    assert 0 < error < 0.05 * np.abs(exact).max()
