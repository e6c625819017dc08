import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atkd_jax.training import from_config
from atkd_jax.training.optim import Optimizer, Schedule
from configs import common


def test_step_schedule_drops_after_the_milestone_epoch():
    lr = Schedule("step", milestones=(150, 180, 210)).make(0.05, 240, 10)
    # Epochs count from 1 in the papers: 150 is the last at the full rate, 151 the first below.
    first_step_of = {epoch: lr((epoch - 1) * 10) for epoch in (1, 150, 151, 180, 181, 211, 240)}
    expected = {1: 5e-2, 150: 5e-2, 151: 5e-3, 180: 5e-3, 181: 5e-4, 211: 5e-5, 240: 5e-5}
    np.testing.assert_allclose(list(first_step_of.values()), list(expected.values()), rtol=1e-5)
    np.testing.assert_allclose(lr(1499), 0.05, rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "step", "exponential", "cosine", "onecycle"])
def test_warmup_rises_from_zero_to_the_peak(name):
    lr = Schedule(name, milestones=(8,), warmup_epochs=2).make(0.4, 10, 100)
    assert lr(0) == 0
    np.testing.assert_allclose(lr(100), 0.2, rtol=1e-5)
    np.testing.assert_allclose(lr(200), 0.4, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_schedule_ends_at_zero(name):
    lr = Schedule(name, warmup_epochs=2).make(0.4, 10, 100)
    np.testing.assert_allclose(lr(1000), 0, atol=1e-8)
    np.testing.assert_allclose(lr(600), 0.2, rtol=1e-5)


def test_milestones_count_from_the_start_of_training_with_warmup_too():
    lr = Schedule("step", milestones=(5,), warmup_epochs=1).make(1.0, 10, 10)
    np.testing.assert_allclose([lr(49), lr(50)], [1.0, 0.1], rtol=1e-5)


def test_sgd_is_pytorchs_coupled_weight_decay():
    """p' = p - lr * (m * buf + (g + wd * p)), two steps worked out by hand."""
    tx = Optimizer("sgd", momentum=0.9, weight_decay=0.5).make(optax.constant_schedule(0.1))
    p, g = jnp.float32(2.0), jnp.float32(1.0)
    state = tx.init(p)
    buffer, expected = 0.0, 2.0
    for _ in range(2):
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        buffer = 0.9 * buffer + (1.0 + 0.5 * expected)
        expected -= 0.1 * buffer
    np.testing.assert_allclose(p, expected, rtol=1e-6)


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Schedule("cosin")
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        Optimizer("adam")


def test_exponential_schedule_drops_after_every_epoch():
    lr = Schedule("exponential", factor=0.98).make(0.045, 300, 10)
    expected = [0.045, 0.045, 0.045 * 0.98, 0.045 * 0.98**299]
    np.testing.assert_allclose([lr(0), lr(9), lr(10), lr(2999)], expected, rtol=1e-4)


def test_the_rate_grows_with_the_batch():
    config = common.get_config()
    config.schedule.name = "constant"
    config.batch_size, config.optimizer.lr = 1024, 0.05
    assert float(from_config.schedule(config, 10)(0)) == np.float32(0.05)
    config.optimizer.reference_batch = 256
    np.testing.assert_allclose(from_config.schedule(config, 10)(0), 0.2, rtol=1e-6)


def test_rmsprop_is_tensorflows():
    """ms = d ms + (1 - d) g^2 from ms = 1; mom = m mom + lr g / sqrt(ms + eps); p -= mom."""
    lr = optax.constant_schedule(0.1)
    tx = Optimizer("rmsprop", momentum=0.9, weight_decay=0.0, rms_decay=0.8, rms_eps=0.5).make(lr)
    p = jnp.float32(2.0)
    state = tx.init(p)
    expected, ms, momentum = 2.0, 1.0, 0.0
    for g in (1.0, -3.0, 0.5):
        updates, state = tx.update(jnp.float32(g), state, p)
        p = optax.apply_updates(p, updates)
        ms = 0.8 * ms + 0.2 * g**2
        momentum = 0.9 * momentum + 0.1 * g / np.sqrt(ms + 0.5)
        expected -= momentum
        np.testing.assert_allclose(p, expected, rtol=1e-6)


def test_nesterov_looks_ahead():
    """v = m v + g; p -= lr (g + m v), as in PyTorch."""
    tx = Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=0.0).make(
        optax.constant_schedule(0.1)
    )
    p, g = jnp.float32(2.0), jnp.float32(1.0)
    state = tx.init(p)
    v, expected = 0.0, 2.0
    for _ in range(2):
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        v = 0.9 * v + 1.0
        expected -= 0.1 * (1.0 + 0.9 * v)
    np.testing.assert_allclose(p, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_batch_norm_and_biases_can_be_spared_from_decay(name, decay_all):
    params = {"kernel": jnp.full((2, 2), 3.0), "scale": jnp.full((2,), 3.0)}
    tx = Optimizer(name, weight_decay=0.5, decay_all=decay_all).make(optax.constant_schedule(0.1))
    zero = {"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros((2,))}
    updates, _ = tx.update(zero, tx.init(params), params)
    assert np.all(updates["kernel"] < 0)
    assert np.all(updates["scale"] < 0) if decay_all else not np.any(updates["scale"])
