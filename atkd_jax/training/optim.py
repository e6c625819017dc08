"""Learning-rate schedules and optimisers, as optax builds them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from atkd_jax.ranges import (
    DECAY,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    check_fields,
    one_of,
    setting,
    tuple_of,
    whole,
)
from atkd_jax.types import PyTree

SCHEDULES = ("constant", "step", "exponential", "cosine", "onecycle")
OPTIMIZERS = ("sgd", "adamw", "rmsprop")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate changes. The default is the CRD benchmark's (RepDistiller).

    Attributes:
      name: "constant"; "step": multiplied by `factor` after every epoch of `milestones`, so that
        with milestone 150 the 151st epoch is the first with the lower rate (as in RepDistiller);
        "exponential": multiplied by `factor` after every epoch (MobileNetV2's 0.98, arXiv
        1801.04381); "cosine": to 0; "onecycle": up linearly over `warmup_epochs`, then down to 0.
      milestones: of "step", in epochs from the start of training.
      factor: of "step" and "exponential".
      warmup_epochs: a linear rise from 0 that precedes any of them.
    """

    name: str = setting("step", one_of(*SCHEDULES))
    milestones: tuple[float, ...] = setting((150, 180, 210), tuple_of(NOT_NEGATIVE))
    factor: float = setting(0.1, POSITIVE)
    warmup_epochs: float = setting(0.0, NOT_NEGATIVE)

    def __post_init__(self):
        check_fields(self)

    def make(self, lr: float, epochs: float, steps_per_epoch: int) -> optax.Schedule:
        """Learning rate as a function of the step, for a peak `lr` and a run of `epochs`."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        decay_steps = max(1, round(epochs * steps_per_epoch) - warmup)
        if self.name == "step":
            after = {round(m * steps_per_epoch) - warmup: self.factor for m in self.milestones}
            main = optax.piecewise_constant_schedule(lr, after)
        elif self.name == "exponential":
            main = optax.exponential_decay(lr, steps_per_epoch, self.factor, staircase=True)
        elif self.name == "cosine":
            main = optax.cosine_decay_schedule(lr, decay_steps)
        elif self.name == "onecycle":
            main = optax.linear_schedule(lr, 0.0, decay_steps)
        else:
            main = optax.constant_schedule(lr)
        if not warmup:
            return main
        return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), main], [warmup])


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD or RMSprop with L2 added to the gradient (PyTorch's `weight_decay`), or AdamW.

    The default is the CRD benchmark's (RepDistiller).

    Attributes:
      name: "sgd", "adamw" or "rmsprop".
      lr: the peak of the learning rate.
      reference_batch: the global batch that `lr` is meant for: the rate grows linearly with the
        batch (Goyal et al. 2017, arXiv 1706.02677). 0: `lr` is the rate of any batch.
      momentum, nesterov: of SGD and RMSprop.
      weight_decay: of AdamW, decoupled: multiplied by the rate, not part of the gradient.
      decay_all: decay every parameter, as the CRD benchmark's code does; else only those with two
        or more axes, which excludes batch norm and biases (He et al. 2018, arXiv 1812.01187).
      rms_decay, rms_eps: of RMSprop's mean square. As in TensorFlow's RMSprop, with which
        MobileNets are trained, the mean square starts at 1, epsilon is inside the root, and
        momentum accumulates steps already multiplied by the rate.
      betas: of AdamW.
    """

    name: str = setting("sgd", one_of(*OPTIMIZERS))
    lr: float = setting(0.05, POSITIVE)
    reference_batch: int = setting(0, whole(0))
    momentum: float = setting(0.9, DECAY)
    nesterov: bool = setting(False, FLAG)
    weight_decay: float = setting(5e-4, NOT_NEGATIVE)
    decay_all: bool = setting(True, FLAG)
    rms_decay: float = setting(0.9, DECAY)
    rms_eps: float = setting(1e-3, POSITIVE)
    betas: tuple[float, float] = setting((0.9, 0.999), tuple_of(DECAY, 2))

    def __post_init__(self):
        check_fields(self)

    def peak(self, batch_size: int) -> float:
        """The highest learning rate, for a global batch."""
        return self.lr * (batch_size / self.reference_batch) if self.reference_batch else self.lr

    def make(self, lr: optax.Schedule) -> optax.GradientTransformation:
        """The optimiser, with the learning rate of every step."""
        mask = None if self.decay_all else _matrices
        if self.name == "adamw":
            return optax.adamw(lr, *self.betas, weight_decay=self.weight_decay, mask=mask)
        decay = optax.identity()
        if self.weight_decay:
            decay = optax.add_decayed_weights(self.weight_decay, mask)
        momentum = self.momentum or None
        if self.name == "rmsprop":
            rms = optax.rmsprop(
                lr,
                self.rms_decay,
                self.rms_eps,
                initial_scale=1.0,
                momentum=momentum,
                nesterov=self.nesterov,
            )
            return optax.chain(decay, rms)
        return optax.chain(decay, optax.sgd(lr, momentum=momentum, nesterov=self.nesterov))


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.ndim(x) >= 2, params)
