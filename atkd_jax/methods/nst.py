"""Neuron selectivity transfer: matches distributions of the channels' activation patterns."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import NAME, setting, tuple_of
from atkd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class NST(Method):
    """Like What You Like: Neuron Selectivity Transfer (Huang & Wang 2017, arXiv 1707.01219).

    The squared maximum mean discrepancy between the channels of teacher and student, each channel's
    map a unit vector f_c [HW], with the polynomial kernel k(a, b) = <a, b>^2:

        L = sum_l mean k(f_t, f_t) + mean k(f_s, f_s) - 2 mean k(f_s, f_t)

    Means over the examples and all pairs of channels. Of two maps of different size the larger is
    average-pooled. Published weight: 50 (RepDistiller).

    Attributes:
      taps: the features to compare; none named: every stage that both networks have.
    """

    taps: tuple[str, ...] = setting((), tuple_of(NAME))

    def init(self, rng, t, s, data):
        taps.map_pairs("nst", t, s, self.taps)
        return Extras()

    def loss(self, extras, t, s, batch, ctx):
        return LossOut(
            sum(
                (
                    _discrepancy(*ops.pool_to_smaller(f_t, f_s))
                    for f_t, f_s in taps.map_pairs("nst", t, s, self.taps)
                ),
                start=jnp.zeros(()),
            )
        )


def _discrepancy(f_t: Array, f_s: Array) -> Array:
    t, s = (ops.l2_normalize(f, axis=(1, 2)) for f in (f_t, f_s))
    t, s = (f.reshape(f.shape[0], -1, f.shape[-1]) for f in (t, s))  # [B, HW, C]
    return _mean_kernel(t, t) + _mean_kernel(s, s) - 2 * _mean_kernel(s, t)


def _mean_kernel(a: Array, b: Array) -> Array:
    """mean_{b,c,d} <a_c, b_d>^2 of [B, N, C] and [B, N, D].

    sum_cd <a_c, b_d>^2 = ||A^T B||^2 = <A A^T, B B^T>: the smaller of [C, D] and [N, N] is formed.
    """
    (n, c), d = a.shape[1:], b.shape[-1]
    if c * d <= n * n:
        return jnp.square(jnp.einsum("bnc,bnd->bcd", a, b, precision="highest")).mean()
    a, b = (jnp.einsum("bnc,bmc->bnm", f, f, precision="highest") for f in (a, b))
    return (a * b).sum(axis=(1, 2)).mean() / (c * d)
