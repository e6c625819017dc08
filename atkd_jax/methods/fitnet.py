"""FitNets: hints from the middle of the teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.nn.conv import conv_general_dilated
from atkd_jax.ranges import FLAG, NAME, setting
from atkd_jax.types import Array

CONV = partial(nn.Conv, conv_general_dilated=conv_general_dilated)


@dataclasses.dataclass(frozen=True)
class FitNet(Method):
    """FitNets: Hints for Thin Deep Nets (Romero et al. 2015, arXiv 1412.6550).

        L = mean_{b,h,w,c} (Reg(F_s) - F_t)^2

    Reg brings the student's map to the teacher's shape: a convolution with bias, batch norm, ReLU.
    The convolution is 3x3 with stride 2 where the student's map is twice as large, transposed 4x4
    with stride 2 where it is half as large, and otherwise an unpadded one of just the right size,
    1x1 for maps of equal size.

    The paper trains the student's lower half on the hint first; RepDistiller, whose tables use
    weight 100, adds the hint to the cross-entropy from the first step, which is done here.

    Attributes:
      tap: the hint layer.
      use_relu: end the regressor in a ReLU, as RepDistiller does. Turn it off for targets without
        an activation of their own (WRN's residual sums), whose negative part it cannot reach.
    """

    tap: str = setting("stage2", NAME)
    use_relu: bool = setting(True, FLAG)

    def init(self, rng, t, s, data):
        ((f_t, f_s),) = taps.map_pairs("fitnet", t, s, (self.tap,))
        small = jnp.zeros((1, *f_s.shape[1:]), jnp.float32)
        variables = jax.jit(self._regressor(f_t, axis_name=None).init)(rng, small)
        return Extras(variables["params"], variables["batch_stats"])

    def loss(self, extras, t, s, batch, ctx):
        ((f_t, f_s),) = taps.map_pairs("fitnet", t, s, (self.tap,))
        regressed, updated = self._regressor(f_t, ctx.axis.name).apply(
            {"params": extras.params, "batch_stats": extras.state},
            ops.f32(f_s),
            mutable=["batch_stats"],
        )
        return LossOut(jnp.square(regressed - ops.f32(f_t)).mean(), updated["batch_stats"])

    def _regressor(self, f_t: Array, axis_name: str | None) -> Regressor:
        return Regressor(f_t.shape[1:], self.use_relu, axis_name)


class Regressor(nn.Module):
    """[B, H, W, C] -> [B, *shape]: convolution, batch norm in training mode, ReLU."""

    shape: tuple[int, ...]
    use_relu: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ops.batch_norm(self.axis_name, name="bn")(self._conv(x))
        return nn.relu(x) if self.use_relu else x

    def _conv(self, x: Array) -> Array:
        (h, w, c_in), (h_t, w_t, c_out) = x.shape[1:], self.shape
        if (h, w) == (2 * h_t, 2 * w_t):
            return _conv(CONV, c_out, (3, 3), 9 * c_in, strides=2, padding=1)(x)
        if (2 * h, 2 * w) == (h_t, w_t):
            # Padding 2 of the dilated input is PyTorch's padding 1 of the transposed convolution,
            # whose own initialisation counts the outputs, not the inputs, as fan_in.
            kwargs = {"strides": (2, 2), "padding": ((2, 2), (2, 2))}
            return _conv(nn.ConvTranspose, c_out, (4, 4), 16 * c_out, **kwargs)(x)
        if h >= h_t and w >= w_t:
            kernel = (1 + h - h_t, 1 + w - w_t)
            return _conv(CONV, c_out, kernel, kernel[0] * kernel[1] * c_in, padding=0)(x)
        raise UserError(
            f"fitnet: the student's map is {h}x{w}, the teacher's {h_t}x{w_t}; the student's has "
            "to be half as large, equal or larger"
        )


def _conv(
    kind: Callable[..., nn.Module], c_out: int, kernel: tuple[int, int], fan_in: int, **kwargs
):
    init = ops.torch_uniform_init(fan_in)
    return kind(c_out, kernel, kernel_init=init, bias_init=init, name="conv", **kwargs)
