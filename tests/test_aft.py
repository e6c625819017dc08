"""AFT's reconstruction: its blocks, and weights that follow the rates of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods
from atkd_jax.methods import Context, Extras, aft
from atkd_jax.types import Batch, DataInfo, ModelOut

KEY = jax.random.key(0)
DATA = DataInfo("fake", (8, 8, 3), tuple("abcde"), 20, 20, (0,) * 3, (1,) * 3)
LABEL = np.array([0, 1, 2, 3, 4, 0], np.int32)


def outs(seed, *shapes) -> ModelOut:
    rng = np.random.default_rng(seed)
    feats = {f"stage{i + 1}": rng.normal(size=(6, *shape)) for i, shape in enumerate(shapes)}
    feats = {tap: np.maximum(x, 0).astype(np.float32) for tap, x in feats.items()}
    return ModelOut(rng.normal(size=(6, 5)).astype(np.float32), feats)


# The student's maps are larger, smaller and equal.
T = outs(0, (4, 4, 3), (4, 4, 5), (2, 2, 7))
S = outs(1, (8, 8, 2), (2, 2, 4), (2, 2, 6))
METHOD = methods.create("aft", beta=3.0)
EXTRAS = METHOD.init(KEY, T, S, DATA)
STEPS_PER_EPOCH = 3


@jax.jit
def loss_of(extras, batch, step=0):
    return METHOD.loss(extras, T, S, batch, Context(KEY, step, STEPS_PER_EPOCH))


def with_history(**means):
    history = EXTRAS.state["history"] | means
    return Extras(EXTRAS.params, EXTRAS.state | {"history": history})


def batch(label):
    return Batch(None, jnp.asarray(label), None)


def test_attention_is_one_on_average_and_follows_the_energy():
    feat = T.feats["stage1"]
    a = aft.spatial_attention(feat)
    energy = np.square(feat).mean(axis=3, keepdims=True)
    np.testing.assert_allclose(a.mean(axis=(1, 2, 3)), 1, rtol=1e-6)
    np.testing.assert_allclose(a, energy / energy.mean(axis=(1, 2, 3), keepdims=True), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", ["both", "attention", "feature"])
def test_blocks_are_compared_as_unit_tensors(transfer):
    method = methods.create("aft", transfer=transfer)
    state = EXTRAS.state["batch_stats"]
    shapes = tuple(x.shape[1:] for x in T.feats.values())
    variables = {"params": EXTRAS.params, "batch_stats": state}
    maps = list(S.feats.values())
    adapted, _ = aft.Adapter(shapes, None).apply(variables, maps, mutable=["batch_stats"])
    expected = 0
    for f_s, f_t in zip(adapted, T.feats.values(), strict=True):
        units = []
        for f in (np.asarray(f_s), f_t):
            energy = np.square(f).mean(axis=3, keepdims=True)
            block = {"both": energy * f, "attention": energy, "feature": f}[transfer]
            units.append(
                block.reshape(6, -1) / np.linalg.norm(block.reshape(6, -1), axis=1)[:, None]
            )
        expected += np.square(units[0] - units[1]).sum(axis=1).mean()
    out = jax.jit(lambda: method.loss(EXTRAS, T, S, batch(LABEL), Context(KEY)))()
    loss = out.metrics["afb"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_loss_is_the_total_without_the_cross_entropy_of_the_objective():
    label = batch(LABEL)
    ce = -np.log(np.asarray(jax.nn.softmax(S.logits))[np.arange(6), LABEL]).mean()
    out = loss_of(EXTRAS, label)
    kl, afb = out.metrics["kl"], out.metrics["afb"]
    np.testing.assert_allclose(out.loss, kl + 3 * afb, rtol=1e-5)
    np.testing.assert_allclose(out.state["history"]["last"], 1)

    rates = np.array([0.5, 1.5, 1.0], np.float32)
    out = loss_of(with_history(last=jnp.asarray(rates)), label)
    w = 3 * np.exp(rates / 2) / np.exp(rates / 2).sum()
    assert w[0] < w[2] < w[1]  # more for what goes down more slowly
    np.testing.assert_allclose(out.loss, (w[0] - 1) * ce + w[1] * kl + 3 * w[2] * afb, rtol=1e-5)


def test_class_probabilities_are_labels_too():
    hard, soft = batch(LABEL), batch(np.eye(5, dtype=np.float32)[LABEL])
    losses = [loss_of(EXTRAS, b).state["history"]["losses"].mean for b in (hard, soft)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("rate", ["previous", "first"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_weights_follow_the_rates_of_epoch_means(rate, micro_batches):
    """However many micro-batches a step has; a mean over an epoch is ready for the next one."""
    rng, shape = np.random.default_rng(3), (5, STEPS_PER_EPOCH * micro_batches, 3)
    losses = rng.uniform(0.5, 2.0, size=shape).astype(np.float32)
    means = losses.mean(axis=1)
    history = EXTRAS.state["history"]
    record = jax.jit(aft.record, static_argnums=3)
    for epoch in range(5):
        expected = np.ones(3)
        if epoch >= 2:
            r = means[epoch - 1] / means[epoch - 2 if rate == "previous" else 0]
            expected = 3 * np.exp(r / 2) / np.exp(r / 2).sum()
        for own in losses[epoch]:
            history = record(history, own, epoch, rate)
            w = aft.loss_weights(history["last"], history["reference"], 2.0)
            np.testing.assert_allclose(w, expected, rtol=1e-5)
    np.testing.assert_allclose(history["losses"].mean, means[4], rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_epoch_is_so_many_steps_of_the_optimiser(micro_batches):
    extras = EXTRAS
    for step in range(2 * STEPS_PER_EPOCH + 1):
        for _ in range(micro_batches):
            out = loss_of(extras, batch(LABEL), step)
            extras = Extras(EXTRAS.params, out.state)
        losses = out.state["history"]["losses"]
        epoch, steps = divmod(step, STEPS_PER_EPOCH)
        assert (losses.period, losses.count) == (epoch, micro_batches * (steps + 1))
    kl, afb = out.metrics["kl"], out.metrics["afb"]  # the same at every step
    for means in (out.state["history"]["last"], out.state["history"]["reference"]):
        np.testing.assert_allclose(means[1:], [kl, afb], rtol=1e-5)


def test_aft_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="unknown AFT.rate 'frist'; did you mean 'first'"):
        methods.create("aft", rate="frist")
    with pytest.raises(ValueError, match="aft: there is no stage to compare"):
        METHOD.init(KEY, T, ModelOut(S.logits, {}), DATA)
    with pytest.raises(ValueError, match="aft: the teacher has 5 classes, the student 4"):
        METHOD.init(KEY, T, ModelOut(S.logits[:, :4], S.feats), DATA)
