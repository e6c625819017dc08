"""Every key of the configuration and its range, checked before any file is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from atkd_jax import data, methods, models, ranges
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.data.subset import Subset
from atkd_jax.errors import UserError, check_known
from atkd_jax.ranges import (
    DECAY,
    EMPTY,
    FLAG,
    INT32,
    NAME,
    NOT_NEGATIVE,
    STATISTICS,
    TEXT,
    Range,
    number,
    one_of,
    whole,
)
from atkd_jax.runtime import topology
from atkd_jax.runtime.devices import MODES
from atkd_jax.training.from_config import DTYPES
from atkd_jax.training.optim import Optimizer, Schedule

SECTION = Range("a section with keys of its own", lambda value: isinstance(value, ConfigDict))
# The keys of configs/common.py, where they are documented.
RANGES: dict[str, Any] = dict(
    seed=whole(0),
    data=dict(
        name=NAME,  # data.create checks it
        data_dir=TEXT,
        options=SECTION,
        subset=ranges.of(Subset),
        augment=ranges.of(Augment),
        mix=ranges.of(Mix),
    ),
    student=one_of(*models.MODELS),
    teacher=dict(
        model=one_of("", *models.MODELS),
        weights=TEXT,
        weights_key=TEXT,
        expect_top1=number("[0, 100]"),
        mean=STATISTICS["mean"] | EMPTY,
        std=STATISTICS["std"] | EMPTY,
        epochs=whole(0),
        lr=NOT_NEGATIVE,
    ),
    ce_weight=NOT_NEGATIVE,
    label_smoothing=DECAY,
    terms=SECTION,
    batch_size=whole(1),
    accumulate=whole(1),
    epochs=whole(1),
    test_every_epochs=whole(1),
    optimizer=ranges.of(Optimizer),
    schedule=ranges.of(Schedule),
    ema=DECAY,
    dtype=one_of(*DTYPES),
    parallel=one_of(*MODES),
    sync_batch_norm=FLAG,
    dry_run=FLAG,
    topology=topology.SLICE,
    steps_per_dispatch=whole(0),
    checkpoint=dict(every_epochs=whole(1), every_steps=whole(0), keep=whole(1)),
)
ANY = Range("anything", lambda value: True)  # a field without a range
# Of every term, besides the fields of its method.
TERM = dict(weight=NOT_NEGATIVE, warmup_epochs=NOT_NEGATIVE, warmup_steps=whole(0))
# What they are before the command line sets one of them.
NO_TERM = dict(weight=0.0, warmup_epochs=0.0, warmup_steps=0)


def check(config: ConfigDict) -> None:
    """Raises UserError if a key is missing, unknown or out of its range, or if values conflict."""
    check_keys(config)
    for key, value, range in _values(config, RANGES):
        ranges.check(key, value, range)
    for key, value in config.data.options.items():
        check_known(
            "key of the configuration", f"data.options.{key}", _keys("data.options", data.OPTIONS)
        )
        ranges.check(f"data.options.{key}", value, data.OPTIONS[key])
    for name, fields in config.terms.items():
        _check_term(name, fields)
    milestones = config.schedule.milestones
    if len(set(milestones)) < len(milestones):
        raise UserError(f"schedule.milestones {tuple(milestones)} names an epoch twice")
    if config.optimizer.nesterov and not config.optimizer.momentum:
        raise UserError("optimizer.nesterov needs momentum; set optimizer.momentum, such as 0.9")
    if not any([config.ce_weight, *(fields.weight for fields in config.terms.values())]):
        raise UserError("ce_weight and all weights of terms are 0: there is nothing to learn")
    if config.topology:
        topology.chip(config.topology)
        if not config.dry_run:
            raise UserError(
                f"topology {config.topology} is only compiled for; add --config.dry_run=True, or"
                " leave topology empty and train on the devices that are there"
            )
        if config.parallel == "none":
            raise UserError("parallel=none runs on one device; use shard_map with a topology")


def check_keys(config: ConfigDict) -> None:
    """Raises UserError if keys are missing or unknown, or a section is not one."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the configuration is of type {type(config).__name__}, not a ConfigDict; start from"
            " get_config() of configs/common.py"
        )
    _check_section(config, RANGES, "")


def _check_section(section: ConfigDict, known: dict[str, Any], prefix: str) -> None:
    if prefix:
        ranges.check(prefix[:-1], section, SECTION)
    for key in section:
        check_known("key of the configuration", f"{prefix}{key}", _keys(prefix[:-1], known))
    for key, inner in known.items():
        if key not in section:
            raise UserError(
                f"the configuration has no key {prefix}{key}; start from get_config() of"
                " configs/common.py"
            )
        if isinstance(inner, dict):
            _check_section(section[key], inner, f"{prefix}{key}.")


def _keys(prefix: str, known: dict[str, Any]) -> list[str]:
    return [f"{prefix}.{key}" if prefix else key for key in known]


def _values(
    section: ConfigDict, known: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Range]]:
    """Yields (key, value, range) of the keys that every configuration has."""
    for key, inner in known.items():
        if isinstance(inner, dict):
            yield from _values(section[key], inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", section[key], inner


def _check_term(name: str, fields: ConfigDict) -> None:
    kind = methods.find(name)
    ranges.check(f"terms.{name}", fields, SECTION)
    for field in dataclasses.fields(kind):
        if field.name in TERM:
            raise UserError(
                f"{name} has a field {field.name}, which is a key of every term; rename it"
            )
    if "weight" not in fields:
        raise UserError(f"terms.{name} has no weight; add one, such as terms.{name}.weight=1")
    known = {field.name: ANY for field in dataclasses.fields(kind)} | ranges.of(kind) | TERM
    for field, value in fields.items():
        check_known(f"hyper-parameter of {name}", field, known)
        ranges.check(f"terms.{name}.{field}", value, known[field])
    for field in dataclasses.fields(kind):
        if _default(field) is dataclasses.MISSING and fields.get(field.name) is None:
            raise UserError(f"terms.{name}.{field.name} has no default; give it a value")


def defaults(kind: type) -> ConfigDict:
    """A section of the configuration: the fields of a dataclass and their defaults.

    A field that takes several types ("float | str"), or has no default, takes a value of any type
    on the command line; its range is checked later.
    """
    section = ConfigDict()
    for field in dataclasses.fields(kind):
        default = _default(field)
        if default is dataclasses.MISSING:
            section[field.name] = placeholder(object)
        elif " | " in str(field.type):
            section[field.name] = FieldReference(default, field_type=object)
        else:
            section[field.name] = default
    return section


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def add_term(config: ConfigDict, name: str, field: str) -> None:
    """Makes `config.terms.NAME.FIELD` a key that the command line can override.

    A term that is not there gets the defaults of its method, and a weight once that is the field.

    Raises:
      UserError: there is no such method.
    """
    kind = methods.find(name)
    if name not in config.terms:
        config.terms[name] = defaults(kind)
    if field in TERM and field not in config.terms[name]:
        config.terms[name][field] = NO_TERM[field]


def check_steps(config: ConfigDict, steps_per_epoch: int) -> None:
    """Raises UserError if an epoch in the configuration is more steps away than int32 can count."""
    epochs = {"epochs": config.epochs, "teacher.epochs": config.teacher.epochs}
    epochs["schedule.warmup_epochs"] = config.schedule.warmup_epochs
    epochs["schedule.milestones"] = max(config.schedule.milestones, default=0)
    for name, fields in config.terms.items():
        epochs[f"terms.{name}.warmup_epochs"] = fields.get("warmup_epochs", 0)
    for key, value in epochs.items():
        if (steps := value * steps_per_epoch) > INT32:
            raise UserError(
                f"{key} {value} is {steps:.0f} steps of {steps_per_epoch} an epoch; steps are"
                f" counted up to {INT32}, so that it is {INT32 // steps_per_epoch} at most"
            )


def schedule_warnings(config: ConfigDict) -> list[str]:
    """Returns a line for every part of a schedule that lies beyond the end of training."""
    schedule, stages = config.schedule, {"epochs": config.epochs}
    trained = config.terms and not config.teacher.weights
    if trained and config.teacher.epochs not in (0, config.epochs):
        stages["teacher.epochs"] = config.teacher.epochs
    lines = []
    if schedule.name == "step" and not schedule.milestones:
        lines.append(
            "schedule.milestones is empty: the learning rate never decays; set some, or"
            " schedule.name=constant"
        )
    for key, epochs in stages.items():
        late = [m for m in schedule.milestones if m >= epochs]
        if schedule.name == "step" and late:
            what = "never decays" if len(late) == len(schedule.milestones) else "decays less often"
            lines.append(
                f"schedule.milestones ({', '.join(f'{m:g}' for m in late)}) lie beyond"
                f" {key}={epochs}: the learning rate {what}; set schedule.milestones below"
                f" {epochs}, or schedule.name=cosine"
            )
        warmups = {"schedule": (schedule.warmup_epochs, "learning rate")}
        if key == "epochs":
            for name, fields in config.terms.items():
                warmups[f"terms.{name}"] = fields.get("warmup_epochs", 0), f"weight of {name}"
        for section, (warmup, what) in warmups.items():
            if warmup >= epochs:
                lines.append(
                    f"{section}.warmup_epochs={warmup:g} is not shorter than {key}={epochs}: the"
                    f" {what} never arrives; set {section}.warmup_epochs below {epochs}"
                )
    return lines
