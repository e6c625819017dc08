"""Options of a step: micro-batches, averages, mixing, a shared teacher, bfloat16, batch norm."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import small_config, write_npz

from atkd_jax import methods, models
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.errors import UserError
from atkd_jax.methods import create
from atkd_jax.models.network import Network
from atkd_jax.runtime import checkpoint
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config
from atkd_jax.training.loader import make_loader
from atkd_jax.training.loop import train_and_evaluate
from atkd_jax.training.multi_step import make_multi_step
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.setup import make_parallel, make_setup
from atkd_jax.training.step import SharedTeacherStep, TrainStep, student_variables
from atkd_jax.types import Batch, DataInfo, ModelOut

BATCH, SIZE, CLASSES, STEPS = 16, 8, 5, 3
STATS = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NUM = 64
LABELS = np.arange(NUM).astype(np.int32) % CLASSES
INFO = DataInfo("noise", (SIZE, SIZE, 3), tuple("abcde"), NUM, NUM, *STATS, train_label=LABELS)
TERMS = {"kd": Term(0.9, create("kd")), "at": Term(10.0, create("at"))}


class Tiny(nn.Module):
    """Two stages, with batch norm or without."""

    norm: bool = False
    bn_axis: str | None = None
    num_classes: int = CLASSES

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
    student = Network(Tiny(norm, parallel.axis.name), *STATS)
    teacher = Network(Tiny(norm), *STATS)
    objective, tx = Objective(0.5, TERMS, label_smoothing=0.1), optax.sgd(0.1, momentum=0.9)
    aug = Augment(pad=1, flip=True)
    options = dict(augment=aug, axis=parallel.axis, accumulate=accumulate, ema=ema)
    step = TrainStep(student, teacher, objective, tx, STEPS, **options)
    state = parallel.init(lambda: step.init(jax.random.key(1), INFO, BATCH))
    weights = parallel.init(
        lambda: teacher.module.init(jax.random.key(2), jnp.zeros((1, *INFO.image_shape)))
    )
    multi_step = parallel.spmd(make_multi_step(step, lambda _, batch: batch), sharded=(3,))
    stack = parallel.shard_batches(batches())
    found, metrics = [jax.device_get(state)], []
    for i in range(STEPS):
        i = np.int32(i)
        state, sums, *_ = multi_step(state, weights, (), stack, i, i + 1, np.int32(7))
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
        TrainStep(network, network, objective, optax.sgd(0.1), STEPS, accumulate=2)


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
        TrainStep(Network(Tiny(), *STATS), None, Objective(), None, STEPS, ema=1.0)


@pytest.mark.slow
def test_the_average_is_tested_and_exported(tmp_path):
    config = small_config(write_npz(tmp_path / "data.npz"))
    config.epochs, config.ema, config.accumulate = 1, 0.9, 2
    config.checkpoint.keep = 1
    train_and_evaluate(config, tmp_path / "run")
    setup, parallel = setup_of(config)
    checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    step = checkpoints.latest()
    state, _ = checkpoints.restore(step, setup.abstract_state, parallel.replicated)
    checkpoints.close()
    abstract = jax.eval_shape(student_variables, setup.abstract_state)
    exported = checkpoint.load_export(tmp_path / "run" / "export", abstract)
    assert_close(exported, jax.device_get(state.ema), 0)
    kernel = state.params["student"]["stem_conv"]["kernel"]
    assert np.abs(exported["params"]["stem_conv"]["kernel"] - kernel).max() > 0


@pytest.mark.parametrize("synchronised", [True, False])
def test_batch_norm_of_each_device_alone_is_one_key(tmp_path, synchronised):
    config = small_config(write_npz(tmp_path / "data.npz"))
    config.parallel, config.sync_batch_norm = "shard_map", synchronised
    axis = setup_of(config)[0].step.student.module.bn_axis
    assert axis == ("batch" if synchronised else None)


def setup_of(config):
    parallel = make_parallel(config)
    loader = make_loader(from_config.source(config), parallel, config.batch_size, config.seed)
    return make_setup(config, parallel, loader.info, loader.steps_per_epoch), parallel


class Counted(Network):
    """A teacher that notes when it is traced."""

    asked = []

    def apply(self, variables, image, train):
        self.asked.append((variables, image.shape, train))
        return self.module.init_with_output(jax.random.key(0), image)[0]


def shared(*changes):
    step = TrainStep(
        student=Network(Tiny(), *STATS),
        teacher=Counted(Tiny(), *STATS),
        objective=Objective(0.5, TERMS),
        tx=optax.sgd(0.1),
        steps_per_epoch=STEPS,
    )
    return SharedTeacherStep(tuple(dataclasses.replace(step, **change) for change in changes))


def test_a_teacher_of_several_students_is_asked_once():
    step = shared({}, {"objective": Objective(1.0, {"kd": TERMS["kd"]})})
    Counted.asked.clear()
    batch = Batch(*(jnp.asarray(x[0]) for x in batches()[:3]))
    before = jax.eval_shape(lambda: step.init(jax.random.key(0), INFO, BATCH))
    after, metrics = jax.jit(step).eval_shape(before, (), batch, jax.random.key(0))
    # Traced once for every platform: in slices for CPU, whole for accelerators.
    assert Counted.asked == [((), (n, SIZE, SIZE, 3), False) for n in (8, BATCH)]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert "at" in metrics[0] and "at" not in metrics[1]


def test_a_student_without_a_teacher_learns_beside_others():
    alone = {"objective": Objective(), "teacher": None}
    step = shared(alone, {})
    before = jax.eval_shape(lambda: step.init(jax.random.key(0), INFO, BATCH))
    batch = Batch(*(jnp.asarray(x[0]) for x in batches()[:3]))
    _, (first, second) = jax.eval_shape(step, before, (), batch, jax.random.key(0))
    assert first.keys() == {"loss", "ce", "top1"} and "kd" in second


def test_students_that_cannot_share_a_teacher_are_refused():
    with pytest.raises(UserError, match="must not differ in augment"):
        shared({}, {"augment": Augment(flip=True)})
    with pytest.raises(UserError, match="accumulate splits the batch"):
        shared({}, {"accumulate": 2})
    assert shared({"accumulate": 2}).steps[0].accumulate == 2  # alone it may


def first_step(devices, mix):
    """Metrics of one step with KD."""
    parallel = Parallel("shard_map", jax.devices()[:devices])
    student = Network(Tiny(True, parallel.axis.name), *STATS)
    teacher = Network(Tiny(True), *STATS)
    objective, tx = Objective(1.0, {"kd": TERMS["kd"]}), optax.sgd(0.01)
    step = TrainStep(student, teacher, objective, tx, STEPS, mix=mix, axis=parallel.axis)
    state = parallel.init(lambda: step.init(jax.random.key(0), INFO, BATCH))
    weights = parallel.init(
        lambda: teacher.module.init(jax.random.key(2), jnp.zeros((1, *INFO.image_shape)))
    )
    multi_step = parallel.spmd(make_multi_step(step, lambda _, batch: batch), sharded=(3,))
    stack, first = parallel.shard_batches(batches()), np.int32(0)
    _, metrics, *_ = multi_step(state, weights, (), stack, first, first + 1, np.int32(0))
    return {key: float(value) for key, value in metrics.items()}


@pytest.mark.slow
def test_mixing_does_not_depend_on_the_devices_and_changes_the_loss():
    alone, together = first_step(1, Mix(mixup=1.0)), first_step(4, Mix(mixup=1.0))
    assert alone == pytest.approx(together, rel=1e-5)
    assert abs(first_step(1, Mix())["ce"] - alone["ce"]) > 1e-3


@functools.cache
def networks(dtype):
    make = functools.partial(models.create, num_classes=CLASSES, dtype=dtype)
    return Network(make("resnet8"), *STATS), Network(make("resnet14"), *STATS)


def bfloat16_step(names):
    student, teacher = networks(jnp.bfloat16)
    objective = Objective(1.0, {name: Term(1.0, create(name)) for name in names})
    tx = optax.sgd(0.01, momentum=0.9)
    key = jax.random.key(0)
    aug = Augment(pad=1, flip=True)
    step = TrainStep(student, teacher, objective, tx, STEPS, augment=aug)

    def run():
        state = step.init(key, INFO, BATCH)
        weights = teacher.module.init(key, jnp.zeros((1, *INFO.image_shape)))
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
