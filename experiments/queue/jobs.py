"""From a configuration string to a job: protocol, seed, teacher, and a name that is a hash.

A job is named by what it computes. The hash is taken over what the resolved configuration changes
in the defaults of configs/common.py, without the keys that say where it runs. So old results keep
their names when a key is added; when a default changes, their names no longer fit, which is
detected.

Protocols:
  paper  the configuration as it is: the schedules of the papers.
  quick  one-cycle, peak at twice the configuration's rate after a quarter of the epochs; warm-ups
         of methods in epochs shrink with them. ResNet-8 students: 2 epochs, float32, for two CPU
         cores; ImageNet: 18 epochs; all others: 30 epochs; both in bfloat16, for one accelerator.
  longer quick with three times the epochs, to check whether quick keeps the order of the methods.
         REPORT.md has the rank correlations: between seeds, with longer, with RTK's Table 1.
  brief  as quick, in 12 epochs of batches of 256 at least, for which the rate is doubled once more:
         ResNet-50 pairs in minutes of an accelerator that batches of 64 leave idle.
  One-cycle configurations (digits, few_images) are short already; all protocols leave them
  unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from atkd_jax.errors import UserError, check_known
from atkd_jax.runtime import run_files
from atkd_jax.training import teachers
from atkd_jax.training.loop import STUDENTS_MAY_DIFFER

PROTOCOLS = ("paper", "quick", "longer", "brief")
LONGER = 3  # times the epochs of quick
ROLES = ("student", "teacher")
# Published weights by data set and this project's name of the network: the file, whose name ends in
# the first digits of its SHA-256, and the top-1 that its author measured (READMEs of github
# akamaster/pytorch_resnet_cifar10 and chenyaofo/pytorch-cifar-models).
PUBLISHED_WEIGHTS = {
    ("cifar10", "resnet20a"): ("resnet20-12fca82f.th", 91.73),
    ("cifar10", "resnet56a"): ("resnet56-4bfd9763.th", 93.39),
    ("cifar100", "resnet56"): ("cifar100_resnet56-f2eff4c8.pt", 72.63),
}
HASH_DIGITS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One training.

    Attributes:
      text: the configuration string, such as "cifar10:method=kd,pair=r56_r20".
      role: "student", or "teacher" for the training of that configuration's teacher.
      protocol, seed: see the top of this file.
      config: resolved; `teacher.weights` names the teacher ("run:HASH" or a published file) and is
        no path yet.
      teacher: the job that trains the teacher; None if there is none or its weights are published.
      hash: the job's name.
    """

    text: str
    role: str
    protocol: str
    seed: int
    config: ConfigDict
    teacher: Job | None
    hash: str

    def __str__(self) -> str:
        return f"{self.text} {self.role} seed {self.seed}"


def resolve(text: str, role: str = "student", protocol: str = "paper", seed: int = 0) -> Job:
    """The job that a configuration string defines.

    Teachers are trained with seed 0, once for all seeds of the students.

    Raises:
      UserError: there is no such configuration, option, protocol or role.
    """
    check_known("protocol", protocol, PROTOCOLS)
    check_known("role", role, ROLES)
    config, teacher = read(text), None
    if protocol != "paper":
        shorten(config, protocol)
    if config.data.name == "digits":
        config.checkpoint.every_epochs = config.epochs
    if role == "teacher":
        config = teachers.teacher_config(config)
    config.seed = seed
    if config.data.subset.images:
        config.data.subset.seed = seed
    if not config.terms:  # no teacher is read, and students of all pairs are the same job
        config.teacher = type(config.teacher)(read_defaults().teacher)
    elif config.teacher.mean:  # set for published weights alone
        weights = PUBLISHED_WEIGHTS.get((config.data.name, config.teacher.model))
        if weights is None:
            raise UserError(f"{text}: no weights of {config.teacher.model} are published for it")
        config.teacher.weights, config.teacher.expect_top1 = weights
    elif not config.teacher.weights:  # ImageNet's configuration names published ones
        teacher = resolve(text, "teacher", protocol)
        config.teacher.weights = f"run:{teacher.hash}"
    return Job(text, role, protocol, seed, config, teacher, name_of(config.to_dict()))


def read(text: str) -> ConfigDict:
    """ "cifar10:method=kd" -> configs.cifar10.get_config("method=kd").

    Raises:
      UserError: it does not exist (any more).
    """
    name, _, arg = text.partition(":")
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"configs.{name}":
            raise
        raise UserError(f"{text}: there is no configs/{name}.py") from error
    if not hasattr(module, "get_config") or name == "common":
        raise UserError(f"{text}: configs/{name}.py is no configuration")
    try:
        return module.get_config(arg)
    except (ValueError, KeyError) as error:
        raise UserError(f"{text}: {error}") from error


def read_defaults() -> ConfigDict:
    return importlib.import_module("configs.common").get_config()


@functools.cache
def flat_defaults() -> dict[str, Any]:
    return run_files.flat(read_defaults().to_dict())


def shorten(config: ConfigDict, protocol: str) -> None:
    """Changes a configuration to a protocol other than that of its paper."""
    if config.schedule.name == "onecycle":
        return
    name, before = config.data.name, config.epochs
    small = config.student == "resnet8"
    config.epochs = 2 if small else 18 if name == "imagenet2012" else 30
    config.dtype, rate = "float32" if small else "bfloat16", 2
    if protocol == "longer":
        config.epochs *= LONGER
    if protocol == "brief":
        config.epochs, config.dtype = 12, "bfloat16"
        if config.batch_size < 256:  # ImageNet's is larger
            config.batch_size, rate = 256, 4
    config.schedule.update(name="onecycle", warmup_epochs=config.epochs / 4)
    config.optimizer.lr *= rate
    config.teacher.lr *= rate
    config.teacher.epochs = 0  # as the student
    for term in config.terms.values():
        if "warmup_epochs" in term:
            term.warmup_epochs *= config.epochs / before


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that the name of its job depends on: {"a.b": value}."""
    defaults, missing = flat_defaults(), object()
    return {
        key: value
        for key, value in run_files.fixed(config).items()
        if value != defaults.get(key, missing)
    }


def name_of(config: dict[str, Any]) -> str:
    """The hash of a resolved configuration: hexadecimal digits."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def group_of(job: Job) -> str:
    """Equal for jobs that can be trained together: those that differ in their methods alone.

    Students of several seeds could be, too, but would all see the images of the first one's seed.
    """
    return name_of(job.config.to_dict() | STUDENTS_MAY_DIFFER | {"seed": job.seed})


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
