"""Learning-rate schedules and the optax chain."""

from __future__ import annotations

from collections.abc import Sequence

import optax

from atkd_jax.errors import check_known

SCHEDULES = ("constant", "step", "cosine", "onecycle")
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
      name: "constant"; "step": times `factor` once `milestones` epochs are done, so with milestone
        150 the 151st epoch is the first with the lower rate (as in RepDistiller); "cosine": to 0;
        "onecycle": linear up over `warmup_epochs`, then linear down to 0.
      lr: the peak.
      epochs, steps_per_epoch: of the whole run.
      warmup_epochs: a linear rise from 0 before any of them.
    """
    check_known("schedule", name, SCHEDULES)
    total, warmup = round(epochs * steps_per_epoch), round(warmup_epochs * steps_per_epoch)
    if name == "step":
        after = {round(m * steps_per_epoch) - warmup: factor for m in milestones}
        main = optax.piecewise_constant_schedule(lr, after)
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
) -> optax.GradientTransformation:
    """SGD and RMSprop with L2 added to the gradient (PyTorch's `weight_decay`), or AdamW.

    Decay applies to every parameter, batch norm and biases too, as in the benchmark's code.
    """
    check_known("optimizer", name, OPTIMIZERS)
    if name == "adamw":
        return optax.adamw(lr, weight_decay=weight_decay)
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    if name == "rmsprop":
        return optax.chain(decay, optax.rmsprop(lr, momentum=momentum))
    return optax.chain(decay, optax.sgd(lr, momentum=momentum or None, nesterov=nesterov))
