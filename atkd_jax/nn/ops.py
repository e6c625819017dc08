"""Array operations shared by the methods, computed and returned in float32.

Operations with a PyTorch counterpart follow it, because the published weights of the losses were
tuned with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.nn.batch_norm import BatchNorm
from atkd_jax.nn.platform import cpu_or_default
from atkd_jax.types import Array

EPSILON = 1e-12  # norms below this count as zero


def f32(x: Array) -> Array:
    """Casts to float32: features may be bfloat16, losses never are."""
    return x.astype(jnp.float32)


# Vectors and distributions


def l2_normalize(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """x / ||x||_2 along `axis`; zero, with zero gradient, where the norm is below 1e-12."""
    x = f32(x)
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    positive = square > EPSILON**2
    return x * jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, square, 1.0)), 0.0)


def safe_sqrt(x: Array) -> Array:
    """sqrt(x); zero, with zero gradient, where x <= 1e-24, since at zero the slope is infinite."""
    x = f32(x)
    positive = x > EPSILON**2
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def kl_divergence(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) = sum_k p_k (log p_k - log q_k) over the last axis: [..., K] -> [...].

    Both come as logarithms; they have to be finite.
    """
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def cross_entropy(logits: Array, label: Array, smoothing: float = 0.0) -> Array:
    """Mean cross-entropy of logits [B, K] and labels: [B] class numbers or [B, K] probabilities.

    A part `smoothing` of every label is spread evenly over all K classes (Szegedy et al. 2016,
    arXiv 1512.00567, section 7).
    """
    log_p = jax.nn.log_softmax(f32(logits))
    if label.ndim == 1:
        ce = -jnp.mean(jnp.take_along_axis(log_p, label[:, None], axis=1))
    else:
        ce = -jnp.mean(jnp.sum(label * log_p, axis=1))
    return (1 - smoothing) * ce - smoothing * jnp.mean(log_p) if smoothing else ce


# Feature maps


def attention_map(feat: Array) -> Array:
    """Activation attention map mean_c F^2, [B, H, W, C] -> [B, H, W].

    Zagoruyko & Komodakis 2017 (arXiv 1612.03928), with the mean over channels of the authors' code.
    """
    return jnp.mean(jnp.square(f32(feat)), axis=-1)


def adaptive_avg_pool(x: Array, size: tuple[int, int]) -> Array:
    """[B, H, W, C] -> [B, h, w, C] with PyTorch's adaptive average pooling.

    Output row i averages the input rows floor(i H / h) .. ceil((i + 1) H / h) - 1, and columns
    alike: a block mean where h divides H, the nearest neighbour where H divides h.
    """
    x = f32(x)
    if x.shape[1:3] != size and x.shape[1] % size[0] == 0 == x.shape[2] % size[1]:
        by_axis = functools.partial(_pool_axes, size=size)
        return cpu_or_default(x, cpu=by_axis, default=functools.partial(block_mean, size=size))
    return _pool_axes(x, size)


def block_mean(x: Array, size: tuple[int, int]) -> Array:
    """`adaptive_avg_pool` of float32, where h divides H and w divides W, as one window reduction.

    XLA for TPU fuses it into what computes x. Of 56x56 to 14x14 at 256 channels it estimates an
    eighth of the cycles that `_pool_axes` takes, and a quarter with the gradient.
    """
    window = (1, x.shape[1] // size[0], x.shape[2] // size[1], 1)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
    return total / (window[1] * window[2])


def _pool_axes(x: Array, size: tuple[int, int]) -> Array:
    for axis, out in zip((1, 2), size, strict=True):
        x = _pool_axis(x, axis, out)
    return x


def _pool_axis(x: Array, axis: int, out: int) -> Array:
    n = x.shape[axis]
    if out == n:
        return x
    if n % out == 0:
        shape = (*x.shape[:axis], out, n // out, *x.shape[axis + 1 :])
        return jnp.mean(x.reshape(shape), axis=axis + 1)
    if out % n == 0:
        return jnp.repeat(x, out // n, axis=axis)
    pool = jnp.tensordot(pool_matrix(n, out), x, axes=(1, axis), precision="highest")
    return jnp.moveaxis(pool, 0, axis)


def pool_matrix(n: int, out: int) -> np.ndarray:
    """The [out, n] averaging matrix of adaptive average pooling along one axis."""
    matrix = np.zeros((out, n), np.float32)
    for i in range(out):
        start, stop = i * n // out, -(-(i + 1) * n // out)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def pool_to_smaller(a: Array, b: Array) -> tuple[Array, Array]:
    """Both maps at the smaller of the two resolutions: the larger is average-pooled."""
    size = smaller_size(a, b)
    return adaptive_avg_pool(a, size), adaptive_avg_pool(b, size)


def smaller_size(a: Array, b: Array) -> tuple[int, int]:
    """(h, w), the smaller height and the smaller width of two [B, H, W, C] maps."""
    return min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])


# Initialisation


def torch_uniform_init(fan_in: int) -> Callable[..., Array]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for both the kernel and the bias of
    linear layers and convolutions: `init(key, shape, dtype=float32)`. `fan_in` counts the inputs of
    one output (of a transposed convolution, as PyTorch does, the outputs of one input).
    """
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# Parts of the small networks that some methods train beside the student


def dense(c_in: int, c_out: int, name: str | None = None) -> nn.Dense:
    """A linear layer of float32 precision with PyTorch's default initialisation."""
    init = torch_uniform_init(c_in)
    return nn.Dense(c_out, kernel_init=init, bias_init=init, precision="highest", name=name)


def batch_norm(
    axis_name: str | None, axis: int | tuple[int, ...] = -1, name: str | None = None
) -> BatchNorm:
    """Batch norm that always uses the statistics of the batch, over the axis `axis_name`."""
    return BatchNorm(use_running_average=False, axis=axis, axis_name=axis_name, name=name)
