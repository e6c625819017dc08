"""A network computes the same in slices of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import models
from atkd_jax.models.network import Network


@pytest.mark.parametrize("batch", [1, 7, 11, 12])
def test_inference_in_slices_is_that_of_the_batch(batch):
    network = Network(models.create("resnet8", 10), (0.4,) * 3, (0.2,) * 3)
    image = jnp.asarray(np.random.RandomState(0).rand(batch, 8, 8, 3), jnp.float32)
    variables = jax.jit(network.module.init)(jax.random.key(0), image)
    expected = jax.jit(network.apply)(variables, image)
    got = jax.jit(network.infer)(variables, image)
    assert set(got.feats) == set(expected.feats)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
