"""Correlation congruence: teacher-student differences on consecutive examples of a batch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import WIDTH, setting
from atkd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class CC(Method):
    """Correlation Congruence for Knowledge Distillation (Peng et al. 2019, arXiv 1904.01802).

        e     = W x + b for each network, both learned   [B, dim], x the pooled features [B, C]
        Delta = |e_s - e_t|
        L     = mean_{b < B} sum_d Delta_b,d Delta_b+1,d

    This is the authors' code as RepDistiller has it (published weight there: 0.02); the paper
    compares kernel matrices of the batch instead. It depends on the order of the batch and is
    not zero for equal features.

    Attributes:
      dim: width of the embeddings.
    """

    needs_global_batch: ClassVar[bool] = True

    dim: int = setting(128, WIDTH)

    def init(self, rng, t, s, data):
        ((x_t, x_s),) = taps.tap_pairs("cc", t, s, ("pooled",))
        taps.check_two_examples("cc", s)
        rng_t, rng_s = jax.random.split(rng)
        return Extras(
            {
                "teacher": _init_linear(rng_t, x_t.shape[-1], self.dim),
                "student": _init_linear(rng_s, x_s.shape[-1], self.dim),
            }
        )

    def loss(self, extras, t, s, batch, ctx):
        ((x_t, x_s),) = taps.tap_pairs("cc", t, s, ("pooled",))
        e_t = _linear(extras.params["teacher"], x_t)
        e_s = _linear(extras.params["student"], x_s)
        delta = jnp.abs(e_s - e_t)  # [B, dim]
        return LossOut((delta[:-1] * delta[1:]).sum(axis=-1).mean())


def _init_linear(rng: Array, c_in: int, c_out: int) -> dict[str, Array]:
    rng_kernel, rng_bias = jax.random.split(rng)
    init = ops.torch_uniform_init(c_in)
    return {"kernel": init(rng_kernel, (c_in, c_out)), "bias": init(rng_bias, (c_out,))}


def _linear(params: dict[str, Array], x: Array) -> Array:
    return jnp.matmul(ops.f32(x), params["kernel"], precision="highest") + params["bias"][None]
