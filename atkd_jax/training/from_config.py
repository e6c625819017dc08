"""Makes the values of training from a checked configuration. Nothing below reads a config."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from atkd_jax import data, methods, models
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.data.subset import Subset
from atkd_jax.errors import UserError
from atkd_jax.models.network import Network
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.optim import Optimizer, Schedule
from atkd_jax.types import DataInfo

DTYPES = ("float32", "bfloat16")


def dataset(config: ConfigDict) -> data.Dataset:
    """The data set and its options, or the chosen part of it. Opens no file."""
    whole = data.create(config.data.name, **config.data.options.to_dict())
    return Subset(**config.data.subset.to_dict()).of(whole)


def source(config: ConfigDict, seed: int | None = None) -> data.Source:
    """The data set, read (in memory) or opened (streamed), ordered by `seed` or by the config's."""
    seed = config.seed if seed is None else seed
    hosts = jax.process_count()
    if config.batch_size % hosts:
        raise UserError(f"batch_size {config.batch_size} is not divisible by {hosts} hosts")
    share = data.Share(config.batch_size // hosts, seed, jax.process_index(), hosts)
    return dataset(config).load(config.data.data_dir or None, share)


def augment(config: ConfigDict) -> Augment:
    """The augmentation of training images, applied before both networks."""
    return Augment(**config.data.augment.to_dict())


def mix(config: ConfigDict) -> Mix:
    """Mixup and CutMix of training images."""
    return Mix(**config.data.mix.to_dict())


def network(
    config: ConfigDict,
    name: str,
    info: DataInfo,
    bn_axis: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Network:
    """A network of MODELS for the classes of `info`, normalised as `info` by default."""
    module = models.create(name, info.num_classes, dtype=jnp.dtype(config.dtype), bn_axis=bn_axis)
    return Network(module, tuple(mean) or info.mean, tuple(std) or info.std)


def objective(config: ConfigDict, steps_per_epoch: int) -> Objective:
    """CE and the configured terms.

    Each entry of `config.terms` is {weight, warmup_epochs and warmup_steps, fields of the method}.
    Over the warm-up, the longer of the two, the weight rises linearly from 0; both are optional.
    """
    terms = {}
    for name, fields in config.terms.items():
        fields = fields.to_dict()
        weight = fields.pop("weight")
        warmup = round(fields.pop("warmup_epochs", 0) * steps_per_epoch)
        if warmup := max(warmup, fields.pop("warmup_steps", 0)):
            weight = optax.linear_schedule(0.0, weight, warmup)
        terms[name] = Term(weight, methods.create(name, **fields))
    return Objective(config.ce_weight, terms, config.label_smoothing)


def schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step."""
    peak = Optimizer(**config.optimizer.to_dict()).peak(config.batch_size)
    return Schedule(**config.schedule.to_dict()).make(peak, config.epochs, steps_per_epoch)


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """One optimiser for the parameters of the student and of the methods."""
    return Optimizer(**config.optimizer.to_dict()).make(schedule(config, steps_per_epoch))
