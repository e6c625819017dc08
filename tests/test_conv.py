"""Convolutions and their gradients are JAX's, whatever computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax.nn import conv, native
from atkd_jax.nn.platform import portable


@pytest.fixture(params=["native", "xla"])
def on_cpu(request, monkeypatch):
    if request.param == "xla":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip("no C++ compiler")


def normal(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape), jnp.float32)


def plain(x, kernel, stride, pad):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def assert_equal_to_jaxs(x, kernel, stride, pad):
    """Values, and gradients relative to the largest, as they are sums over all pixels."""

    def results(function):
        def value_and_gradients(x, kernel, g):
            value, pull = jax.vjp(lambda x, w: function(x, w, stride, pad), x, kernel)
            return value, *pull(g)

        return jax.jit(value_and_gradients)(x, kernel, g)

    g = normal(2, *jax.eval_shape(lambda: plain(x, kernel, stride, pad)).shape)
    expected, ours = results(plain), results(conv.convolution)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("channels", [(3, 5), (3, 16), (20, 80), (16, 48)], ids=str)
@pytest.mark.parametrize("k, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (3, 3)])
def test_value_and_gradients_are_jaxs(on_cpu, k, stride, channels):
    size = (7, 19) if stride == 1 else (8, 9)
    assert_equal_to_jaxs(
        normal(0, 4, *size, channels[0]), normal(1, k, k, *channels), stride, k // 2
    )


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (3, 2), (2, 3)])
def test_unpadded_convolutions_are_jaxs(on_cpu, k, stride):
    assert_equal_to_jaxs(normal(0, 2, 6, 7, 16), normal(1, k, k, 16, 32), stride, 0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 4)], ids=str)
def test_images_smaller_than_a_kernel_are_jaxs(on_cpu, size, stride):
    assert_equal_to_jaxs(normal(0, 3, *size, 144), normal(1, 3, 3, 144, 160), stride, 1)


@pytest.mark.parametrize(("stride", "size"), [(1, (5, 6)), (2, (6, 5)), (2, (1, 4))], ids=str)
@pytest.mark.parametrize("channels", [4, 37])
def test_depthwise_convolutions_are_jaxs(on_cpu, stride, size, channels):
    assert_equal_to_jaxs(normal(0, 3, *size, channels), normal(1, 3, 3, 1, channels), stride, 1)


@pytest.mark.parametrize("channels", [(24, 32), (32, 24), (5, 7)], ids=str)
def test_products_over_many_pixels_are_jaxs(on_cpu, channels):
    assert_equal_to_jaxs(normal(0, 4, 32, 32, channels[0]), normal(1, 1, 1, *channels), 1, 0)


def test_images_larger_than_a_strip_are_jaxs(on_cpu):
    assert_equal_to_jaxs(normal(0, 1, 40, 70, 20), normal(1, 3, 3, 20, 16), 2, 1)


def test_a_kernels_gradient_is_as_accurate_over_many_pixels(on_cpu):
    x, g = normal(0, 64, 32, 32, 16), normal(1, 64, 32, 32, 16)
    ours = jax.jit(lambda x, g: conv.kernel_gradient(x, g, (3, 3, 16, 16), 1, 1))(x, g)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = [
        [np.einsum("bhwc,bhwd->cd", padded[:, i : i + 32, j : j + 32], g) for j in range(3)]
        for i in range(3)
    ]
    assert np.abs(np.asarray(ours) - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_accelerators_and_exporters_get_xlas_convolution(platform):
    x, dense, depthwise = normal(0, 2, 8, 8, 16), normal(1, 3, 3, 16, 16), normal(2, 3, 3, 1, 16)

    def lowered(x, dense, depthwise):
        y = conv.convolution(conv.convolution(x, dense, 1, 1), depthwise, 1, 1)
        return jnp.sum(y)

    def text(function):
        traced = jax.jit(function).trace(x, dense, depthwise)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    with portable():
        exported = text(lambda *args: lowered(*args))
    assert exported.count("stablehlo.convolution") == 2 and "custom_call" not in exported
    gradient = text(jax.value_and_grad(lowered, (0, 1, 2)))
    if platform != "cpu":
        assert "custom_call" not in gradient
        assert gradient.count("stablehlo.convolution") == 6
    elif native.available():
        assert gradient.count("custom_call @atkd_jax.") == 6


def test_inside_a_loop_every_convolution_has_the_order_that_is_quick(monkeypatch):
    """XLA leaves the bodies of loops as they are written."""
    monkeypatch.setattr(native, "available", lambda: False)

    def loop(n, x, kernel):
        def body(i, carry):
            x, kernel = carry
            _, pull = jax.vjp(lambda x, w: conv.convolution(x, w, 1, 1), x, kernel)
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


@pytest.mark.parametrize("features", [5, 16])
def test_bfloat16_stays_bfloat16(features):
    x, kernel = jnp.ones((2, 4, 4, 3), jnp.bfloat16), jnp.ones((3, 3, 3, features), jnp.bfloat16)
    value, pull = jax.vjp(lambda x, w: conv.convolution(x, w, 1, 1), x, kernel)
    assert {a.dtype for a in (value, *pull(value))} == {jnp.dtype(jnp.bfloat16)}


def test_a_depthwise_gradient_of_half_precision_is_summed_in_float32():
    x, kernel = jnp.ones((512, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 1, 2), jnp.bfloat16)
    d_kernel = jax.grad(lambda k: jnp.sum(conv.convolution(x, k, 1, 1)))(kernel)
    assert d_kernel.dtype == jnp.bfloat16
    assert d_kernel[1, 1, 0, 0] == 512 * 16  # a bfloat16 sum of ones would stop at 256
