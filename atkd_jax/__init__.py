"""Knowledge distillation for image classification in JAX.

Methods, networks and training steps are values with pure functions, for any training loop:

    import jax, optax
    import atkd_jax as atkd
    data = atkd.data.load("digits")
    networks = (atkd.models.create(name, num_classes=10) for name in ("resnet8", "resnet20"))
    student, teacher = (atkd.Network(net, data.info.mean, data.info.std) for net in networks)
    objective = atkd.Objective(0.1, {"kd": atkd.Term(0.9, atkd.methods.KD(temperature=4.0))})
    step = atkd.TrainStep(student, teacher, objective, optax.adam(1e-3), steps_per_epoch=22)
    key, images, labels = jax.random.key(0), data.train.image[:64], data.train.label[:64]
    state = step.init(key, data.info, batch_size=64)
    variables = teacher.module.init(key, images / 255)  # better: of a trained teacher
    batch = atkd.Batch(images, labels, jax.numpy.arange(64))
    state, metrics = jax.jit(step)(state, variables, batch, key)

`methods`, `models` and `data` are modules, whose `create` and `load` take names. A whole run with
checkpoints and logs, as on the command line, is `train_and_evaluate(config, workdir)`.
examples/own_loop.py calls methods without `TrainStep`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atkd_jax import data, methods, models
    from atkd_jax.data.augment import Augment
    from atkd_jax.data.mix import Mix
    from atkd_jax.errors import UserError
    from atkd_jax.methods.base import Context, Extras, LossOut, Method
    from atkd_jax.models.network import Network
    from atkd_jax.nn.collectives import Collectives
    from atkd_jax.training.loop import train_and_evaluate, train_students
    from atkd_jax.training.objective import Objective, Term
    from atkd_jax.training.step import SharedTeacherStep, TrainStep, student_variables
    from atkd_jax.types import Batch, DataInfo, ModelOut, TrainState

# Warnings of this package are logged even where other libraries are silenced.
logging.getLogger(__name__).setLevel(logging.WARNING)

__all__ = [
    "Augment",
    "Batch",
    "Collectives",
    "Context",
    "DataInfo",
    "Extras",
    "LossOut",
    "Method",
    "Mix",
    "ModelOut",
    "Network",
    "Objective",
    "SharedTeacherStep",
    "Term",
    "TrainState",
    "TrainStep",
    "UserError",
    "data",
    "methods",
    "models",
    "student_variables",
    "train_and_evaluate",
    "train_students",
]
__version__ = "0.1.0"

# Names are imported on first use: any import of a submodule runs this file, and most need little.
_MODULE_OF = {
    name: module
    for module, names in {
        "data.augment": ["Augment"],
        "data.mix": ["Mix"],
        "errors": ["UserError"],
        "methods.base": ["Context", "Extras", "LossOut", "Method"],
        "models.network": ["Network"],
        "nn.collectives": ["Collectives"],
        "training.loop": ["train_and_evaluate", "train_students"],
        "training.objective": ["Objective", "Term"],
        "training.step": ["SharedTeacherStep", "TrainStep", "student_variables"],
        "types": ["Batch", "DataInfo", "ModelOut", "TrainState"],
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"atkd_jax.{_MODULE_OF[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"atkd_jax.{name}")
    raise AttributeError(f"module 'atkd_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
