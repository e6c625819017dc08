"""Learning-rate schedules and the optax chain."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from atkd_jax.errors import check_known
from atkd_jax.types import PyTree

SCHEDULES = ("constant", "step", "exponential", "cosine", "onecycle")
OPTIMIZERS = ("sgd", "adamw", "rmsprop")


def make_schedule(
    name: str,
    lr: float,
    epochs: float,
    steps_per_epoch: int,
    *,
    milestones: Sequence[float] = (),
    factor: float = 0.1,
    warmup_epochs: float = 0.0,
) -> optax.Schedule:
    """Learning rate as a function of the step.

    Args:
      name: "constant"; "step": multiplied by `factor` after every epoch of `milestones`, so that
        with milestone 150 the 151st epoch is the first with the lower rate (as in RepDistiller);
        "exponential": multiplied by `factor` after every epoch (MobileNetV2's 0.98, arXiv
        1801.04381); "cosine": to 0; "onecycle": up linearly over `warmup_epochs`, then down to 0.
      lr: the peak.
      epochs: of the whole run, warm-up included.
      warmup_epochs: a linear rise from 0 that precedes any of them.
    """
    check_known("schedule", name, SCHEDULES)
    total, warmup = round(epochs * steps_per_epoch), round(warmup_epochs * steps_per_epoch)
    if name == "step":
        after = {round(m * steps_per_epoch) - warmup: factor for m in milestones}
        main = optax.piecewise_constant_schedule(lr, after)
    elif name == "exponential":
        main = optax.exponential_decay(lr, steps_per_epoch, factor, staircase=True)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(lr, max(1, total - warmup))
    elif name == "onecycle":
        main = optax.linear_schedule(lr, 0.0, max(1, total - warmup))
    else:
        main = optax.constant_schedule(lr)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), main], [warmup])


def make_optimizer(
    name: str,
    lr: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_all: bool = True,
    rms_decay: float = 0.9,
    rms_eps: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
) -> optax.GradientTransformation:
    """SGD or RMSprop with L2 added to the gradient (PyTorch's `weight_decay`), or AdamW.

    Args:
      lr: learning rate as a function of the step.
      momentum, nesterov: of SGD and RMSprop.
      weight_decay: of AdamW, decoupled: multiplied by the rate, not part of the gradient.
      decay_all: decay every parameter, as the CRD benchmark's code does; else only those with two
        or more axes, which excludes batch norm and biases (He et al. 2018, arXiv 1812.01187).
      rms_decay, rms_eps: of RMSprop's mean square. As in TensorFlow's RMSprop, with which
        MobileNets are trained, the mean square starts at 1, epsilon is inside the root, and
        momentum accumulates steps already multiplied by the rate.
      betas: of AdamW.
    """
    check_known("optimizer", name, OPTIMIZERS)
    mask = None if decay_all else _matrices
    if name == "adamw":
        b1, b2 = betas
        return optax.adamw(lr, b1, b2, weight_decay=weight_decay, mask=mask)
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    momentum = momentum or None
    if name == "rmsprop":
        rms = optax.rmsprop(
            lr, rms_decay, rms_eps, initial_scale=1.0, momentum=momentum, nesterov=nesterov
        )
        return optax.chain(decay, rms)
    return optax.chain(decay, optax.sgd(lr, momentum=momentum, nesterov=nesterov))


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.ndim(x) >= 2, params)
