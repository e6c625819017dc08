"""Teachers: from an export, from published PyTorch weights, or trained here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from atkd_jax.errors import UserError
from atkd_jax.models import convert, torch_file
from atkd_jax.models.network import Network
from atkd_jax.runtime import checkpoint, fingerprint, hosts, run_files
from atkd_jax.runtime.devices import Parallel
from atkd_jax.runtime.fingerprint import DATA, Facts, difference, same_classes
from atkd_jax.training import from_config
from atkd_jax.training.evaluate import make_evaluate
from atkd_jax.training.loader import Loader
from atkd_jax.training.summary import about_network
from atkd_jax.types import DataInfo, PyTree

TEST = {key: name for key, name in DATA.items() if key.startswith("test_")}
TOLERANCE = 0.5  # points of top-1 between `expect_top1` and what was measured


def abstract_variables(network: Network, info: DataInfo) -> PyTree:
    """Shapes and dtypes of the network's variables."""
    image = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    return jax.eval_shape(network.module.init, jax.random.key(0), image)


def read_facts(config: ConfigDict) -> dict[str, Any]:
    """Metadata of the weights: mean, std, and, of an export, the rest of meta.json.

    Raises:
      UserError: no such file, one of another kind, or a mean and std that make no sense or that
        the weights were not trained with.
    """
    given = given_statistics(config)
    if not config.teacher.weights:
        if given:
            raise UserError(
                "teacher.mean and teacher.std belong to published weights; give teacher.weights or"
                " drop them: a teacher that is trained here is normalised as its data set is"
            )
        if config.teacher.weights_key:
            raise UserError("teacher.weights_key is a part of teacher.weights, which is not given")
        return {}
    path = Path(run_files.expand(config.teacher.weights))
    if not path.exists():
        raise UserError(f"teacher.weights {path} does not exist")
    if path.is_dir():
        return export_facts(path, given, config.teacher.weights_key)
    torch_file.check_kind(path)
    if len(given) == 1:
        [there], [lacking] = given, {"mean", "std"} - given.keys()
        raise UserError(
            f"teacher.{there} is given and teacher.{lacking} is not; give both, as the weights in"
            f" {path} were trained with, or none to use the data set's"
        )
    return given


def given_statistics(config: ConfigDict) -> dict[str, tuple]:
    """teacher.mean and teacher.std, if given."""
    return {key: tuple(config.teacher[key]) for key in ("mean", "std") if config.teacher[key]}


def weights_path(config: ConfigDict, workdir: Path) -> Path:
    """The given weights, or the export of a teacher that is trained in `workdir`."""
    if config.teacher.weights:
        return Path(run_files.expand(config.teacher.weights))
    return workdir / "teacher" / "export"


def export_facts(path: Path, given: dict[str, tuple], key: str) -> dict[str, Any]:
    """Metadata of an export; raises UserError if it contradicts the configuration."""
    if key:
        raise UserError(f"teacher.weights {path} is an export of one network; drop weights_key")
    meta = checkpoint.read_export_meta(path)
    for name, value in given.items():
        if value != tuple(meta[name]):
            raise UserError(
                f"the teacher in {path} was trained with {name} {tuple(meta[name])}, not {value};"
                f" drop teacher.{name}"
            )
    return meta


def rounded(numbers: tuple[float, ...]) -> str:
    return f"({', '.join(f'{x:.4g}' for x in numbers)})"


def describe(config: ConfigDict, info: DataInfo) -> Network:
    """The teacher network, without its weights.

    Raises:
      UserError: no such network, as `read_facts`, or an export of a different network.
    """
    model = config.teacher.model
    if not model:
        raise UserError("a method is asked for but no teacher; set config.teacher.model")
    facts = read_facts(config)
    for key, ours in (("model", model), ("num_classes", info.num_classes)):
        if facts.get(key, ours) != ours:
            raise UserError(
                f"the teacher in {config.teacher.weights} has {key} {facts[key]}, this run needs"
                f" {ours}"
            )
    return from_config.network(
        config, model, info, mean=facts.get("mean", ()), std=facts.get("std", ())
    )


def teacher_config(config: ConfigDict) -> ConfigDict:
    """The configuration that trains the teacher: the student's, without a teacher."""
    own = config.copy_and_resolve_references()
    own.student, own.terms, own.ce_weight = config.teacher.model, ConfigDict(), 1.0
    own.epochs = config.teacher.epochs or config.epochs
    own.optimizer.lr = config.teacher.lr or config.optimizer.lr
    own.teacher.update(model="", epochs=0, lr=0.0, expect_top1=0.0)
    return own


def load(
    config: ConfigDict,
    network: Network,
    info: DataInfo,
    path: Path,
    meta: dict[str, Any] | None = None,
) -> PyTree:
    """Reads the teacher's variables as host arrays.

    Args:
      path: of `weights_path`.
      meta: of an export, if it has been read already.

    Raises:
      UserError: tensors are missing, left over, or of other shapes.
    """
    abstract = abstract_variables(network, info)
    if path.is_dir():
        return checkpoint.load_export(path, abstract, meta)
    found = convert.load_torch(path, config.teacher.weights_key)
    if found.others:
        hosts.log_once(
            f"{path} holds several weights: {found.key or 'those at the top'} is read, not"
            f" {' or '.join(found.others)}; teacher.weights_key chooses"
        )
    if not config.teacher.mean:
        hosts.log_once(
            "no teacher.mean and teacher.std are given: the teacher's images are normalised with"
            f" those of {info.name}, {rounded(network.mean)} and {rounded(network.std)}"
        )
    return convert.to_flax(config.teacher.model, found.tensors, abstract)


def prepare(
    config: ConfigDict,
    network: Network,
    loader: Loader,
    parallel: Parallel,
    data: Facts,
    workdir: Path,
    train: Callable,
) -> tuple[PyTree, dict[str, Any], Facts]:
    """Loads or trains a teacher, and evaluates it before distillation.

    Args:
      data: the fingerprint of this run's data.
      workdir: of the run; a teacher without weights is trained, or resumed, in its folder teacher/.
      train: `train_and_evaluate(config, workdir)`.

    Returns:
      its replicated variables, its numbers, and its fingerprint.

    Raises:
      UserError: it was trained for other classes, or its accuracy is not the expected one.
    """
    info = loader.info
    if not config.teacher.weights:
        train(teacher_config(config), workdir / "teacher")
    meta = check_export(config, workdir, data)
    variables = load(config, network, info, weights_path(config, workdir), meta)
    replicated = parallel.replicate(variables)
    top1 = make_evaluate(network, loader, parallel)(replicated)["top1"]
    hosts.log_once(f"teacher {config.teacher.model}: top-1 {top1:.2f} on {info.name}'s test set")
    check_top1(config, top1, meta, info.num_test)
    if warning := chance_warning(top1, info):
        hosts.log_once(warning)
    about = about_network(config.teacher.model, network, variables["params"], info)
    own = fingerprint.of_teacher(config.teacher.model, network.mean, network.std, variables)
    own |= {"top1": top1, "class_names": meta.get("class_names")}
    return replicated, about | {"top1": top1}, own


def check_export(config: ConfigDict, workdir: Path, data: Facts) -> dict[str, Any]:
    """Metadata of an exported teacher; {} for published weights.

    Args:
      data: the fingerprint of this run's data.

    Raises:
      UserError: its classes or their order differ from the data's; or it was trained in this
        workdir, and the data have changed since.
    """
    path = weights_path(config, workdir)
    if not path.is_dir():
        return {}
    meta = checkpoint.read_export_meta(path)
    if not same_classes(meta["class_names"], data["class_names"]):
        changed = difference(meta, data, {"class_names": ""})
        raise UserError(
            f"the teacher in {path} was trained for other classes than {config.data.name} has"
            f" ({changed}); a class number has to mean the same to both"
        )
    then = meta.get("fingerprint", {}).get("data", {})
    if not config.teacher.weights and (changed := difference(then, data, DATA)):
        raise UserError(
            f"the data of the run in {workdir} changed since its teacher was trained: {changed}."
            " Restore what it began with, or start another --workdir"
        )
    if difference(then, data, TEST) or not TEST.keys() <= then.keys() & data.keys():
        meta.pop("top1")  # measured on other images
    return meta | {"path": path}


def check_top1(config: ConfigDict, top1: float, meta: dict[str, Any], num_test: int) -> None:
    """Raises UserError if the accuracy of the teacher is not the expected one.

    Args:
      top1: the measured accuracy, in percent.
      meta: of `check_export`.
      num_test: number of test images; two of them may change sides by rounding.
    """
    if (expected := config.teacher.expect_top1) and abs(top1 - expected) > TOLERANCE:
        raise UserError(
            f"the teacher's top-1 is {top1:.2f}, expected {expected:.2f}: wrong weights, mean or"
            " std? Correct them, or teacher.expect_top1"
        )
    said = meta.get("top1", top1)
    if abs(top1 - said) > max(TOLERANCE, 200 / num_test):
        raise UserError(
            f"the teacher's top-1 is {top1:.2f}, and {meta['path']} says {said:.2f} of the same"
            " test images: its files or this code are not what they were"
        )


def chance_warning(top1: float, info: DataInfo) -> str | None:
    """A warning if the accuracy of the teacher is at chance level."""
    chance = 1 / info.num_classes
    noise = 2 * (chance * (1 - chance) / info.num_test) ** 0.5
    if top1 > 100 * (chance + noise):
        return None
    return (
        f"warning: the teacher's top-1 of {top1:.2f} is that of guessing among {info.num_classes}"
        " classes: it has nothing to teach. Wrong weights, mean or std, or trained too little?"
    )
