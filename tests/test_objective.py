"""The loss of a step: its parts, their weights, and state that is equal on all devices."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from atkd_jax.methods import Context, Extras, LossOut, Method, create
from atkd_jax.models.network import Network
from atkd_jax.nn import collectives
from atkd_jax.nn.ops import cross_entropy
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import TrainStep
from atkd_jax.types import Batch, DataInfo, ModelOut


def outputs(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    feats = {f"stage{i}": jax.random.normal(keys[i], (4, 4, 4, 8)) for i in (1, 2)}
    return ModelOut(jax.random.normal(keys[0], (4, 10)), feats)


T, S = outputs(0), outputs(1)
BATCH = Batch(None, jnp.array([3, 1, 4, 1]), jnp.arange(4))
NOTHING = Extras({"kd": {}, "at": {}}, {"kd": {}, "at": {}})


def loss_of(objective, s=S, step=0):
    return objective.loss(NOTHING, T, s, BATCH, Context(jax.random.key(0), jnp.int32(step)))


def test_cross_entropy_is_minus_the_mean_log_probability_of_the_label():
    p = np.exp(S.logits) / np.exp(S.logits).sum(1, keepdims=True)
    expected = -np.log(p[np.arange(4), BATCH.label]).mean()
    np.testing.assert_allclose(cross_entropy(S.logits, BATCH.label), expected, rtol=1e-6)
    one_hot = jax.nn.one_hot(BATCH.label, 10)
    np.testing.assert_allclose(cross_entropy(S.logits, one_hot), expected, rtol=1e-6)


def test_loss_is_the_weighted_sum_of_its_parts():
    terms = {"kd": Term(0.9, create("kd")), "at": Term(1000.0, create("at"))}
    total, (_, parts) = loss_of(Objective(0.1, terms))
    expected = 0.1 * parts["ce"] + 0.9 * parts["kd"] + 1000.0 * parts["at"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert float(parts["loss"]) == float(total)


def test_a_weight_may_be_a_schedule():
    warm = Objective(1.0, {"kd": Term(lambda step: step / 10, create("kd"))})
    ce, kd = (loss_of(warm)[1][1][key] for key in ("ce", "kd"))
    np.testing.assert_allclose(loss_of(warm, step=0)[0], ce, rtol=1e-6)
    np.testing.assert_allclose(loss_of(warm, step=5)[0], ce + 0.5 * kd, rtol=1e-6)


def test_nothing_flows_into_the_teacher():
    terms = {"kd": Term(0.9, create("kd")), "at": Term(1000.0, create("at"))}
    objective = Objective(0.1, terms)

    def of(t, s):
        return objective.loss(NOTHING, t, s, BATCH, Context(jax.random.key(0)))[0]

    to_teacher, to_student = jax.grad(of, argnums=(0, 1))(T, S)
    assert all(not np.any(g) for g in jax.tree.leaves(to_teacher))
    assert all(np.any(g) for g in jax.tree.leaves(to_student))


def test_label_smoothing_gives_a_part_of_the_label_to_all_classes():
    soft = 0.9 * jax.nn.one_hot(BATCH.label, 10) + 0.1 / 10
    expected = cross_entropy(S.logits, soft)
    np.testing.assert_allclose(cross_entropy(S.logits, BATCH.label, 0.1), expected, rtol=1e-6)
    mixed = jax.nn.softmax(T.logits)  # labels that are probabilities already
    expected = cross_entropy(S.logits, 0.9 * mixed + 0.1 / 10)
    np.testing.assert_allclose(cross_entropy(S.logits, mixed, 0.1), expected, rtol=1e-6)


def test_label_smoothing_is_for_the_cross_entropy_alone():
    terms = {"kd": Term(0.9, create("kd")), "at": Term(1000.0, create("at"))}
    _, (_, plain) = loss_of(Objective(1.0, terms))
    _, (_, smooth) = loss_of(Objective(1.0, terms, label_smoothing=0.1))
    assert smooth["kd"] == plain["kd"] and smooth["at"] == plain["at"]
    np.testing.assert_allclose(smooth["ce"], cross_entropy(S.logits, BATCH.label, 0.1), rtol=1e-6)


def test_label_smoothing_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="label_smoothing 1.0 is not in 0..1"):
        Objective(label_smoothing=1.0)


@dataclasses.dataclass(frozen=True)
class RunningMean(Method):
    """Draws features to a running mean of them, which each device knows of its own examples."""

    def init(self, rng, t, s, data):
        return Extras(state={"mean": jnp.zeros(s.feats["pooled"].shape[-1]), "steps": jnp.int32(0)})

    def loss(self, extras, t, s, batch, ctx):
        pooled, mean = s.feats["pooled"], extras.state["mean"]
        loss = jnp.square(pooled - mean[None]).mean()
        mean = 0.5 * mean + 0.5 * pooled.mean(axis=0)
        return LossOut(loss, {"mean": mean, "steps": ctx.step + 1})


class Tiny(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train=False, rng=None):
        pooled = nn.tanh(nn.Dense(5)(x.reshape(len(x), -1)))
        return ModelOut(nn.Dense(self.num_classes)(pooled), {"pooled": pooled})


def test_state_that_devices_compute_from_their_own_examples_is_that_of_one_device():
    """And so is the student that learns from it, over three steps."""
    info = DataInfo("fake", (4, 4, 3), tuple("abc"), 24, 24, (0.5,) * 3, (0.25,) * 3)
    student = Network(Tiny(), info.mean, info.std)
    objective = Objective(1.0, {"own": Term(5.0, RunningMean())})
    one = TrainStep(student, None, objective, optax.sgd(0.5), steps_per_epoch=3)
    four = dataclasses.replace(one, axis=collectives.over("devices"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 4, 4, 3)).astype(np.uint8)
    batches = [Batch(x, np.arange(8, dtype=np.int32) % 3, np.arange(8)) for x in images]
    key = jax.random.key(1)

    def stacked(state, batch):
        state, _ = four(state, (), batch, key)
        return jax.tree.map(lambda x: x[None], state)

    steps = {
        "one": jax.jit(lambda state, batch: one(state, (), batch, key)[0]),
        "four": jax.jit(
            jax.shard_map(
                stacked,
                mesh=Mesh(np.array(jax.devices()[:4]), ("devices",)),
                in_specs=(P(), P("devices")),
                out_specs=P("devices"),
                check_vma=False,
            )
        ),
    }
    expected = state = one.init(key, info, 8)
    for batch in batches:
        expected = steps["one"](expected, batch)
        every = steps["four"](state, batch)
        for x in jax.tree.leaves(every):
            np.testing.assert_array_equal(x, np.stack([x[0]] * 4))
        state = jax.tree.map(lambda x: x[0], every)
        chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)
    assert state.method_state["own"]["steps"] == 3
    assert np.abs(state.method_state["own"]["mean"]).max() > 0.1
