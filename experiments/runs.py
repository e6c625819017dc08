"""From a configuration string to a run: protocol, seed, teacher, and a name that is a hash.

A run is named by what it computes. The hash is taken over what the resolved configuration changes
in the defaults of configs/common.py, without the keys that say where it runs. So old results keep
their names when a key is added; when a default changes, their names no longer fit, which is found.

Protocols:
  paper  the configuration as it stands: the schedules of the papers.
  quick  one-cycle, peak at twice the recipe's rate after a quarter of the epochs; warm-ups of
         methods shrink with the epochs. ResNet-8 students: 2 epochs, float32, for two CPU cores;
         ImageNet: 18 epochs; all others: 30 epochs; both in bfloat16, for one accelerator.
  longer quick with three times the epochs; it is there to see whether quick keeps the order.
         REPORT.md tells how far orders agree: between seeds, with longer, with RTK's Table 1.
  digits is short as it stands: 12 epochs, one-cycle; every protocol leaves it alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from atkd_jax.errors import check_known
from atkd_jax.runtime.run_files import RESUME_MAY_CHANGE, flat
from atkd_jax.training import teachers

PROTOCOLS = ("paper", "quick", "longer")
LONGER = 3  # times the epochs of quick
ROLES = ("student", "teacher")
# Published weights by our name of the network: the file, whose name ends in the first digits of its
# SHA-256, and the top-1 that its author measured (github akamaster/pytorch_resnet_cifar10, README).
PUBLISHED = {
    "resnet20a": ("resnet20-12fca82f.th", 91.73),
    "resnet56a": ("resnet56-4bfd9763.th", 93.39),
}
HASH_DIGITS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Attributes:
      text: the configuration string, such as "cifar10:method=kd,pair=r56_r20".
      role: "student", or "teacher" for the training of that configuration's teacher.
      protocol, seed: as asked for.
      config: resolved; `teacher.weights` names the teacher ("run:HASH" or a published file) and is
        no path yet.
      teacher: the run that trains the teacher; None if there is none or its weights are published.
      hash: the run's name.
    """

    text: str
    role: str
    protocol: str
    seed: int
    config: ConfigDict
    teacher: Run | None
    hash: str


def resolve(text: str, role: str = "student", protocol: str = "paper", seed: int = 0) -> Run:
    """The run that a configuration string means.

    Teachers are trained with seed 0, once for all seeds of the students.

    Raises:
      ValueError: there is no such configuration, option, protocol or role.
    """
    check_known("protocol", protocol, PROTOCOLS)
    check_known("role", role, ROLES)
    config, master = read(text), None
    if protocol != "paper":
        shorten(config, LONGER if protocol == "longer" else 1)
    config.checkpoint.every_epochs = config.epochs if config.data.name == "digits" else 1
    if role == "teacher":
        config = teachers.teacher_config(config)
    config.seed = seed
    if not config.terms:  # then no teacher is read, and students of all pairs are the same run
        config.teacher = type(config.teacher)(read_defaults().teacher)
    elif config.teacher.model in PUBLISHED:
        config.teacher.weights, config.teacher.expect_top1 = PUBLISHED[config.teacher.model]
    elif not config.teacher.weights:  # ImageNet's configuration names published ones
        master = resolve(text, "teacher", protocol)
        config.teacher.weights = f"run:{master.hash}"
    return Run(text, role, protocol, seed, config, master, name_of(config.to_dict()))


def read(text: str) -> ConfigDict:
    """ "cifar10:method=kd" -> configs.cifar10.get_config("method=kd").

    Raises:
      ValueError: it does not exist (any more).
    """
    name, _, arg = text.partition(":")
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"{text}: there is no configs/{name}.py") from error
    if not hasattr(module, "get_config") or name == "common":
        raise ValueError(f"{text}: configs/{name}.py is no configuration")
    try:
        return module.get_config(arg)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{text}: {error}") from error


def read_defaults() -> ConfigDict:
    return importlib.import_module("configs.common").get_config()


@functools.cache
def flat_defaults() -> dict:
    return flat(read_defaults().to_dict())


def shorten(config: ConfigDict, times: int) -> None:
    """Makes a configuration follow the quick protocol, for so many times its epochs."""
    name = config.data.name
    if name == "digits":
        return
    before = config.epochs
    small = config.student == "resnet8"
    config.epochs = times * (2 if small else 18 if name == "imagenet2012" else 30)
    config.dtype = "float32" if small else "bfloat16"
    config.schedule.update(name="onecycle", warmup_epochs=config.epochs / 4)
    config.optimizer.lr *= 2
    config.teacher.lr *= 2
    config.teacher.epochs = 0  # as the student
    for term in config.terms.values():
        if "warmup_epochs" in term:
            term.warmup_epochs *= config.epochs / before


def identity(config: dict) -> dict:
    """What a run's name depends on: {"a.b": value}, see the top of this file."""
    defaults = flat_defaults()
    return {
        key: value
        for key, value in flat(config).items()
        if not (key in defaults and value == defaults[key])
        and value != {}
        and not any(key == free or key.startswith(free + ".") for free in RESUME_MAY_CHANGE)
    }


def name_of(config: dict) -> str:
    """The hash of a resolved configuration: hexadecimal digits."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def group_of(run: Run) -> str:
    """Equal for runs that one program can train together: all but the methods is the same."""
    config = run.config.to_dict()
    return name_of(config | {"terms": {}, "ce_weight": 1.0})


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
