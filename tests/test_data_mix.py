"""Mixup and CutMix: the shares add up, and nothing depends on the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from atkd_jax.data.mix import Mix, mix, rectangle

B, K = 16, 5
IMAGE = jax.random.uniform(jax.random.key(9), (B, 8, 10, 3))
LABEL = jnp.arange(B) % K
POSITION = jnp.arange(B)
SPECS = [Mix(mixup=0.8), Mix(cutmix=1.0), Mix(mixup=0.2, cutmix=1.0, probability=0.7)]


def run(policy):
    return jax.jit(lambda key: mix(key, IMAGE, LABEL, POSITION, K, policy))


@pytest.mark.slow
@pytest.mark.parametrize("policy", SPECS)
def test_images_and_labels_have_the_same_shares(policy):
    """With images that hold their own one-hot label, the mixture's mean pixel is its label."""
    image = jnp.broadcast_to(jax.nn.one_hot(LABEL, K)[:, None, None, :], (B, 8, 10, K))
    one = jax.jit(lambda key: mix(key, image, LABEL, POSITION, K, policy))
    for step in range(6):
        mixed, label = one(jax.random.key(step))
        np.testing.assert_allclose(mixed.mean((1, 2)), label, atol=1e-5)
        np.testing.assert_allclose(label.sum(1), 1.0, atol=1e-5)


@pytest.mark.slow
def test_devices_do_not_change_the_mixture():
    policy = SPECS[2]
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))

    def local(key, image, label, position):
        def gather(tree):
            return jax.tree.map(lambda x: jax.lax.all_gather(x, "batch", tiled=True), tree)

        return mix(key, image, label, position, K, policy, gather)

    spread = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(), P("batch"), P("batch"), P("batch")),
            out_specs=P("batch"),
            check_vma=False,
        )
    )
    one = run(policy)
    for step in range(2):
        key = jax.random.key(step)
        for ours, right in zip(spread(key, IMAGE, LABEL, POSITION), one(key), strict=True):
            np.testing.assert_allclose(ours, right, atol=1e-6)


def test_cutmix_pastes_one_rectangle():
    mixed, label = run(Mix(cutmix=1.0))(jax.random.key(3))
    own = (np.asarray(mixed) == np.asarray(IMAGE)).all(-1)  # [B, H, W]
    moved = ~own.all((1, 2))
    pasted = ~own[moved]
    assert moved.any() and (pasted == pasted[0]).all()
    rows, columns = np.flatnonzero(pasted[0].any(1)), np.flatnonzero(pasted[0].any(0))
    box = pasted[0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.all() and box.sum() == pasted[0].sum()
    kept = np.asarray(label)[np.arange(B), LABEL]
    np.testing.assert_allclose(kept[moved].min(), 1 - pasted[0].mean(), atol=1e-6)


@pytest.mark.slow
def test_shares_have_the_named_distribution():
    keys = jax.random.split(jax.random.key(0), 2000)
    image, label = jnp.zeros((2, 4, 4, 3)), jnp.array([0, 1])

    def share(key, policy):
        """How much the first image keeps, where its partner is the other one; else nan."""
        mixed = mix(key, image, label, jnp.arange(2), 2, policy)[1][0]
        return mixed[0]

    shares = np.asarray(jax.jit(jax.vmap(lambda k: share(k, Mix(mixup=0.2))))(keys))
    # Half of the images are their own partners and keep everything.
    mixed = shares[shares < 1 - 1e-6]
    assert 0.3 < len(mixed) / len(shares) < 0.55
    assert abs((mixed**2).mean() - (0.25 + 1 / 5.6)) < 0.06  # the second moment of Beta(0.2, 0.2)
    off = Mix(mixup=1.0, probability=0.0)
    assert not off.active and Mix(cutmix=1.0).active and not Mix().active
    np.testing.assert_array_equal(run(off)(keys[0])[0], IMAGE)


def test_rectangles_have_the_named_area():
    keys = jax.random.split(jax.random.key(1), 500)
    boxes = jax.jit(jax.vmap(lambda k: rectangle(k, 40, 60, 0.25)))(keys)
    area = np.asarray(boxes).mean((1, 2))
    # The whole area where the rectangle lies inside, never more; centres at the edge lose parts.
    assert abs(area.max() - 0.25) < 0.02 and area.min() > 0.05 and (area > 0.23).mean() > 0.2
    assert rectangle(keys[0], 8, 8, 0.0).sum() == 0


@pytest.mark.parametrize(
    ("field", "message"),
    [({"mixup": -0.1}, "mixup -0.1"), ({"cutmix": -1}, "cutmix -1"), ({"probability": 2}, "prob")],
)
def test_wrong_parameters_are_named(field, message):
    with pytest.raises(ValueError, match=message):
        Mix(**field)
