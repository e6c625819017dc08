"""From a configuration, once checked, to what training is made of. Config goes no further down."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from atkd_jax import data, methods, models, optim
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.objective import Objective, Term
from atkd_jax.step import Network
from atkd_jax.types import DataSpec

DTYPES = ("float32", "bfloat16")


def source(config: ConfigDict) -> Any:
    """The data set, read (in memory) or opened (streamed)."""
    hosts = jax.process_count()
    if config.batch_size % hosts:
        raise ValueError(f"batch_size {config.batch_size} is not divisible by {hosts} hosts")
    share = data.Share(config.batch_size // hosts, config.seed, jax.process_index(), hosts)
    options = config.data.options.to_dict()
    return data.load(
        config.data.name, data_dir=config.data.data_dir or None, share=share, **options
    )


def augment(config: ConfigDict) -> Augment:
    """What happens to a training image before both networks see it."""
    return Augment(**config.data.augment.to_dict())


def mixing(config: ConfigDict) -> Mix:
    """Whether training images are mixed with each other."""
    return Mix(**config.data.mix.to_dict())


def network(
    config: ConfigDict,
    name: str,
    spec: DataSpec,
    bn_axis: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Network:
    """A network of MODELS for the classes of `spec`, normalising as `spec` says unless told."""
    module = models.create(name, spec.num_classes, dtype=jnp.dtype(config.dtype), bn_axis=bn_axis)
    return Network(module, tuple(mean) or spec.mean, tuple(std) or spec.std)


def objective(config: ConfigDict, steps_per_epoch: int, axis_name: str | None = None) -> Objective:
    """CE and the configured terms.

    Each entry of `config.terms` is {weight, warmup_epochs (optional), fields of the method}.
    """
    terms = {}
    for name, fields in config.terms.items():
        fields = fields.to_dict()
        weight = fields.pop("weight")
        warmup = round(fields.pop("warmup_epochs", 0) * steps_per_epoch)
        if warmup:
            weight = optax.linear_schedule(0.0, weight, warmup)
        method = methods.create(name, **fields)
        if hasattr(method, "axis_name"):
            method = dataclasses.replace(method, axis_name=axis_name)
        terms[name] = Term(weight, method)
    return Objective(config.ce_weight, terms, config.label_smoothing)


def schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step.

    With `optimizer.reference_batch`, `optimizer.lr` is that of a batch of so many examples and
    grows with the batch (the linear rule of Goyal et al. 2017, arXiv 1706.02677).
    """
    fields = config.schedule.to_dict()
    name, lr = fields.pop("name"), config.optimizer.lr
    if config.optimizer.reference_batch:
        lr *= config.batch_size / config.optimizer.reference_batch
    return optim.make_schedule(name, lr, config.epochs, steps_per_epoch, **fields)


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """One optimiser for the student and for what the methods learn."""
    fields = config.optimizer.to_dict()
    name, _, _ = (fields.pop(key) for key in ("name", "lr", "reference_batch"))
    return optim.make_optimizer(name, schedule(config, steps_per_epoch), **fields)
