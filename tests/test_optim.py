import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atkd_jax.optim import make_optimizer, make_schedule


def test_step_schedule_drops_after_the_milestone_epoch():
    lr = make_schedule("step", 0.05, 240, 10, milestones=(150, 180, 210))
    # Epochs count from 1 in the papers: 150 is the last at the full rate, 151 the first below.
    first_step_of = {epoch: lr((epoch - 1) * 10) for epoch in (1, 150, 151, 180, 181, 211, 240)}
    expected = {1: 5e-2, 150: 5e-2, 151: 5e-3, 180: 5e-3, 181: 5e-4, 211: 5e-5, 240: 5e-5}
    np.testing.assert_allclose(list(first_step_of.values()), list(expected.values()), rtol=1e-5)
    np.testing.assert_allclose(lr(1499), 0.05, rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "onecycle"])
def test_warmup_rises_from_zero_to_the_peak(name):
    lr = make_schedule(name, 0.4, 10, 100, milestones=(8,), warmup_epochs=2)
    assert lr(0) == 0
    np.testing.assert_allclose(lr(100), 0.2, rtol=1e-5)
    np.testing.assert_allclose(lr(200), 0.4, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_schedule_ends_at_zero(name):
    lr = make_schedule(name, 0.4, 10, 100, warmup_epochs=2)
    np.testing.assert_allclose(lr(1000), 0, atol=1e-8)
    np.testing.assert_allclose(lr(600), 0.2, rtol=1e-5)


def test_milestones_count_from_the_start_of_training_with_warmup_too():
    lr = make_schedule("step", 1.0, 10, 10, milestones=(5,), warmup_epochs=1)
    np.testing.assert_allclose([lr(49), lr(50)], [1.0, 0.1], rtol=1e-5)


def test_sgd_is_pytorchs_coupled_weight_decay():
    """p' = p - lr * (m * buf + (g + wd * p)), two steps worked out by hand."""
    tx = make_optimizer("sgd", optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.5)
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
        make_schedule("cosin", 0.1, 1, 1)
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        make_optimizer("adam", optax.constant_schedule(0.1))
