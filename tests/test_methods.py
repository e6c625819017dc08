"""What every method promises. Methods come from METHODS: a new one is checked without a line here.

SPECIAL holds what a method needs beyond the default row, VARIANTS rows for variants with code of
their own.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from atkd_jax import methods
from atkd_jax.methods import METHODS, Context, Extras, LossOut, Method
from atkd_jax.nn import collectives
from atkd_jax.training.objective import Objective, Term
from atkd_jax.types import Batch, DataInfo, ModelOut

B, K, N = 8, 10, 64
DEVICES, STEPS_PER_EPOCH = 4, 2
LABELS = np.arange(N, dtype=np.int32) % K
DATA = DataInfo(
    name="fake",
    image_shape=(8, 8, 3),
    class_names=tuple("abcdefghij"),
    num_train=N,
    num_test=N,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    train_label=LABELS,
)
# Channels of the stages, at 8x8, 4x4 and 2x2, and blocks in each.
SMALL, LARGE = ((4, 8, 16), 1), ((8, 16, 32), 2)


class Row(NamedTuple):
    name: str
    fields: dict = {}
    t: tuple = LARGE
    s: tuple = SMALL
    zero_for_equal: bool = False


SPECIAL = {
    "kd": dict(zero_for_equal=True),
    "at": dict(zero_for_equal=True),
    "self_attention": dict(zero_for_equal=True),
    "sp": dict(zero_for_equal=True),
    "rkd": dict(zero_for_equal=True),
    "pkt": dict(zero_for_equal=True),
    "nst": dict(zero_for_equal=True),
    "fsp": dict(t=SMALL, zero_for_equal=True),
    "crd": dict(fields={"negatives": 32}),
    "afd": dict(fields={"dim": 16}),
    "rtk": dict(fields={"dim": 16}),
    "dkd": dict(zero_for_equal=True),
}
VARIANTS = [
    Row("at", {"variant": "paper"}, zero_for_equal=True),
    Row("self_attention", {"scale": "sqrt_d", "heads": 2, "max_size": 4}, zero_for_equal=True),
    Row("fitnet", {"tap": "stage1", "use_relu": False}),
    Row("rtk", {"dim": 16, "select_on": "per_sample", "ema": 0.9, "resample": "softpool_map"}),
]
ROWS = [Row(name, **SPECIAL.get(name, {})) for name in METHODS] + VARIANTS
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def fake_out(net, seed, dtype=np.float32) -> ModelOut:
    """An output with a residual network's taps, filled with noise."""
    (channels, depth), rng = net, np.random.default_rng(seed)
    feats = {"stem": np.maximum(rng.normal(size=(B, 8, 8, channels[0])), 0)}
    for i, c in enumerate(channels):
        shape = (B, 8 >> i, 8 >> i, c)
        for j in range(depth):
            pre = rng.normal(size=shape)
            feats[f"block{depth * i + j + 1}"] = np.maximum(pre, 0)
        feats |= {f"stage{i + 1}_pre": pre, f"stage{i + 1}": np.maximum(pre, 0)}
    feats["pooled"] = feats["stage3"].mean(axis=(1, 2))
    feats = {tap: jnp.asarray(feat, dtype) for tap, feat in feats.items()}
    return ModelOut(jnp.asarray(rng.normal(size=(B, K)), jnp.float32), feats)


def fake_batch(seed) -> Batch:
    index = np.random.default_rng(seed).permutation(N)[:B].astype(np.int32)
    return Batch(jnp.zeros((B, 8, 8, 3)), jnp.asarray(LABELS[index]), jnp.asarray(index))


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


ONE = collectives.Collectives()


def objective_of(method) -> Objective:
    return Objective(ce_weight=0.0, terms={"term": Term(1.0, method)})


def loss_of(method, params, state, t, s, batch, step, axis=ONE):
    """(loss, next state), through an objective."""
    rng = jax.random.fold_in(jax.random.key(0), step)
    ctx = Context(rng, step, STEPS_PER_EPOCH, axis)
    extras = Extras({"term": params}, {"term": state})
    loss, (state, _) = objective_of(method).loss(extras, t, s, batch, ctx)
    return loss, state["term"]


class OneDevice(NamedTuple):
    """A method on noise.

    Attributes:
      extras: of `init`.
      call: (params, state, t, s, batch, step) -> (loss, state), gradients of (params, t, s).
    """

    t: ModelOut
    s: ModelOut
    extras: Extras
    call: object


@functools.cache
def one_device(method, t=LARGE, s=SMALL, dtype=jnp.float32) -> OneDevice:
    t, s = fake_out(t, 0, dtype), fake_out(s, 1, dtype)
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def call(*args):
        loss = functools.partial(loss_of, method)
        return jax.value_and_grad(loss, argnums=(0, 2, 3), has_aux=True)(*args)

    extras = method.init(jax.random.key(0), shapes_of(t), shapes_of(s), DATA)
    return OneDevice(t, s, extras, jax.jit(call))


def on_devices(method):
    """As `OneDevice.call`, over devices, without the teacher's gradient: every device's state is
    stacked along a new first axis."""
    axis = collectives.over("devices")

    def call(params, state, t, s, batch, step):
        loss = functools.partial(loss_of, method, axis=axis)
        values, (grad, grad_s) = jax.value_and_grad(loss, argnums=(0, 3), has_aux=True)(
            params, state, t, s, batch, step
        )
        loss, state = values
        # The loss is the mean over the devices, of which this is one.
        grad_s = jax.tree.map(lambda x: x / DEVICES, grad_s)
        return *axis.mean((loss, grad)), grad_s, jax.tree.map(lambda x: x[None], state)

    return jax.jit(
        jax.shard_map(
            call,
            mesh=Mesh(np.array(jax.devices()[:DEVICES]), ("devices",)),
            in_specs=(P(), P(), P("devices"), P("devices"), P("devices"), P()),
            out_specs=(P(), P(), P("devices"), P("devices")),
            check_vma=False,
        )
    )


def check_contract(method, t=LARGE, s=SMALL):
    """Raises AssertionError unless a method keeps what its loss means, however a batch is split."""
    check_devices(method, t, s)
    check_micro_batches(method, t, s)


def check_devices(method, t, s):
    """Loss, gradients and state of two steps on several devices are those of one device."""
    t, s, extras, call = one_device(method, t, s)
    call_on_devices, state = on_devices(method), extras.state
    for i in range(2):
        args = extras.params, state, t, s, fake_batch(i), jnp.int32(i)
        (loss, state), (grad, _, grad_s) = call(*args)
        loss_d, grad_d, grad_s_d, states = call_on_devices(*args)
        close(loss_d, loss, "the loss on several devices is not that of one")
        close(grad_d, grad, "gradients on several devices are not those of one")
        close(grad_s_d, grad_s, "the student's gradients on several devices are not those of one")
        for x, expected in zip(jax.tree.leaves(states), jax.tree.leaves(state), strict=True):
            assert np.array_equal(x, np.stack([x[0]] * DEVICES)), f"state differs by device: {x}"
            # A running mean of zero, such as one that follows a batch norm, is rounding.
            atol = 1e-7 + 1e-5 * np.abs(expected).max()
            message = "state on several devices is not that of one"
            np.testing.assert_allclose(x[0], expected, rtol=0, atol=atol, err_msg=message)


def close(tree, expected, message):
    """To 1e-5 of the largest number in the tree: zero gradients have no scale of their own."""
    scale = max((np.abs(x).max() for x in jax.tree.leaves(expected)), default=0)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * scale, err_msg=message)


def check_micro_batches(method, t, s):
    """State that does not depend on the examples depends on the step alone: a clock in it would
    count micro-batches."""
    t, s, extras, call = one_device(method, t, s)

    def state_after(seed, micro_batches):
        """After four steps, that is two epochs, and the first call of the fifth."""
        steps = [step for step in range(4) for _ in range(micro_batches)]
        state, batch = extras.state, fake_batch(seed)
        teacher, student = jax.tree.map(lambda x: x * (1 + seed * x), (t, s))  # other examples
        for step in (*steps, 4):
            (_, state), _ = call(extras.params, state, teacher, student, batch, jnp.int32(step))
        return state

    leaves = [jax.tree.leaves(state_after(*args)) for args in ((0, 1), (1, 1), (0, 2))]
    for one, other_examples, two in zip(*leaves, strict=True):
        if np.array_equal(one, other_examples):
            same = np.array_equal(one, two)
            assert same, f"state counts micro-batches: {one} after one a step, {two} after two"


class Trained(NamedTuple):
    """Two steps of one method on noise, the second from the first one's state, and a third on a
    student all of whose features are zero."""

    extras: Extras
    losses: list
    states: list
    grads: list  # (params, teacher, student)


@functools.cache
def trained(index, dtype) -> Trained:
    row = ROWS[index]
    t, s, extras, call = one_device(methods.create(row.name, **row.fields), row.t, row.s, dtype)
    losses, states, grads = [], [], []
    state, zeros = extras.state, jax.tree.map(jnp.zeros_like, s)
    for i, student in enumerate((s, s, zeros)):
        (loss, state), grad = call(extras.params, state, t, student, fake_batch(i), jnp.int32(i))
        losses.append(loss)
        states.append(state)
        grads.append(grad)
    return Trained(extras, losses, states, grads)


def results(row, dtype=jnp.float32) -> Trained:
    return trained(ROWS.index(row), dtype)


@pytest.mark.slow
@every_row
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_loss_is_a_finite_float32_scalar_with_finite_gradients(row, dtype):
    out = results(row, dtype)
    for loss in out.losses:
        assert loss.shape == () and loss.dtype == jnp.float32 and np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(out.grads))


@pytest.mark.slow
@every_row
def test_student_and_own_parameters_learn_and_the_teacher_does_not(row):
    params, teacher, student = results(row).grads[0]
    assert any(np.any(g != 0) for g in jax.tree.leaves(student))
    assert all(np.all(g == 0) for g in jax.tree.leaves(teacher))
    for path, g in jax.tree.leaves_with_path(params):
        # RTK's queries of teacher blocks that are not selected stand still.
        assert np.any(g != 0) or (row.name == "rtk" and "query" in jax.tree_util.keystr(path)), path


@pytest.mark.slow
@every_row
def test_bfloat16_features_give_nearly_the_same_loss(row):
    expected = results(row).losses[0]
    np.testing.assert_allclose(results(row, jnp.bfloat16).losses[0], expected, rtol=0.05)


@pytest.mark.slow
@every_row
def test_state_keeps_its_structure_shapes_and_dtypes(row):
    out = results(row)
    for state in out.states:
        chex.assert_trees_all_equal_shapes_and_dtypes(state, out.extras.state)


@pytest.mark.slow
@every_row
def test_devices_and_micro_batches_change_nothing(row):
    check_contract(methods.create(row.name, **row.fields), row.t, row.s)


@pytest.mark.parametrize("row", [r for r in ROWS if r.zero_for_equal], ids=lambda row: row.name)
def test_loss_of_equal_outputs_is_zero(row):
    out = fake_out(row.s, 2)
    method = methods.create(row.name, **row.fields)
    extras = method.init(jax.random.key(0), shapes_of(out), shapes_of(out), DATA)

    @jax.jit
    def loss(out):
        return method.loss(extras, out, out, fake_batch(0), Context(jax.random.key(0))).loss

    np.testing.assert_allclose(loss(out), 0, atol=1e-6)


# The contract, on methods that keep it and on methods that do not


@dataclasses.dataclass(frozen=True)
class RunningMean(Method):
    """Float state of a device's own examples: right because the objective averages it."""

    def init(self, rng, t, s, data):
        return Extras(state={"mean": jnp.zeros(s.feats["pooled"].shape[-1])})

    def loss(self, extras, t, s, batch, ctx):
        pooled, mean = s.feats["pooled"].astype(jnp.float32), extras.state["mean"]
        loss = jnp.square(pooled - mean[None] - 1).mean()
        return LossOut(loss, {"mean": 0.9 * mean + 0.1 * pooled.mean(axis=0)})


@dataclasses.dataclass(frozen=True)
class LocalCount(Method):
    """Counts the classes of a device's own examples."""

    def init(self, rng, t, s, data):
        return Extras(state={"seen": jnp.zeros(K, jnp.int32)})

    def loss(self, extras, t, s, batch, ctx):
        seen = extras.state["seen"] + self.count(batch, ctx)
        return LossOut(jnp.square(s.logits).mean(), {"seen": seen})

    def count(self, batch, ctx):
        return jnp.bincount(batch.label, length=K)


@dataclasses.dataclass(frozen=True)
class GlobalCount(LocalCount):
    """Counts the classes of all examples."""

    def count(self, batch, ctx):
        return jnp.bincount(ctx.axis.gather(batch.label), length=K)


@dataclasses.dataclass(frozen=True)
class Spread(Method):
    """Compares examples with each other."""

    needs_global_batch: ClassVar[bool] = True

    def loss(self, extras, t, s, batch, ctx):
        return LossOut(jnp.var(s.logits, axis=0).mean())


@dataclasses.dataclass(frozen=True)
class LocalSpread(Spread):
    """Compares only those of a device."""

    needs_global_batch: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class OwnClock(Method):
    """Counts calls to warm up, in whole numbers or in fractions."""

    dtype: str = "int32"

    def init(self, rng, t, s, data):
        return Extras(state={"step": jnp.zeros((), self.dtype)})

    def loss(self, extras, t, s, batch, ctx):
        step = extras.state["step"]
        weight = jnp.minimum(1.0, (step + 1) / 4)
        return LossOut(weight * jnp.square(s.logits).mean(), {"step": step + 1})


@dataclasses.dataclass(frozen=True)
class RunsClock(Method):
    """Warms up by the run's clock."""

    def loss(self, extras, t, s, batch, ctx):
        return LossOut(jnp.minimum(1.0, (ctx.step + 1) / 4) * jnp.square(s.logits).mean())


@pytest.mark.parametrize("kind", [RunningMean, GlobalCount, Spread, RunsClock])
def test_the_contract_holds_for(kind):
    check_contract(kind())


@pytest.mark.parametrize(
    "method, message",
    [
        (LocalCount(), "state differs by device"),
        (LocalSpread(), "the loss on several devices is not that of one"),
        (OwnClock(), "state counts micro-batches: 5 after one a step, 9 after two"),
        (OwnClock("float32"), "state counts micro-batches: 5.0 after one a step, 9.0 after two"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_contract_is_broken_by(method, message):
    with pytest.raises(AssertionError, match=message):
        check_contract(method)


def test_unknown_names_give_the_nearest_match():
    with pytest.raises(ValueError, match="unknown method 'fitnets'; did you mean 'fitnet'"):
        methods.create("fitnets")
    with pytest.raises(ValueError, match="hyper-parameter of kd 'temp.*'; did you mean 'temper"):
        methods.create("kd", temperatur=4.0)
