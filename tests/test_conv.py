"""Our gradients of a convolution are JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax.nn.conv import ORDER, convolution, input_gradient, kernel_gradient


def plain(x, kernel, stride, pad):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad),) * 2, dimension_numbers=ORDER
    )


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=str)
@pytest.mark.parametrize("k, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (3, 3)])
def test_value_and_gradients_are_jaxs(k, stride, size):
    rng = np.random.RandomState(0)
    pad = k // 2
    x = jnp.asarray(rng.randn(4, *size, 3), jnp.float32)
    kernel = jnp.asarray(rng.randn(k, k, 3, 5), jnp.float32)
    expected, theirs = jax.vjp(lambda x, w: plain(x, w, stride, pad), x, kernel)
    value, ours = jax.vjp(lambda x, w: convolution(x, w, stride, pad), x, kernel)
    np.testing.assert_array_equal(value, expected)
    g = jnp.asarray(rng.randn(*value.shape), jnp.float32)
    for one, other in zip(ours(g), theirs(g), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_inside_a_loop_every_convolution_has_the_order_that_is_quick():
    """XLA leaves the bodies of loops as they are written."""

    def loop(n, x, kernel):
        def body(i, carry):
            x, kernel = carry
            _, pull = jax.vjp(lambda x, w: convolution(x, w, 1, 1), x, kernel)
            return pull(x)

        return jax.lax.fori_loop(0, n, body, (x, kernel))

    text = (
        jax.jit(loop)
        .lower(np.int32(3), jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4)))
        .compile()
        .as_text()
    )
    found = [line for line in text.splitlines() if " convolution(" in line]
    assert len(found) >= 2
    assert all("dim_labels=b01f_01io->b01f" in line for line in found)


def test_bfloat16_stays_bfloat16():
    x, kernel = jnp.ones((2, 4, 4, 3), jnp.bfloat16), jnp.ones((3, 3, 3, 5), jnp.bfloat16)
    g = jnp.ones((2, 4, 4, 5), jnp.bfloat16)
    shapes = jax.eval_shape(
        lambda: (input_gradient(g, kernel, (4, 4), 1, 1), kernel_gradient(x, g, (3, 3), 1, 1))
    )
    assert [s.dtype for s in shapes] == [jnp.bfloat16] * 2
    assert [s.shape for s in shapes] == [x.shape, kernel.shape]
