"""What a finished run leaves: the result line, with areas under the curve and what figures need."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax import data
from atkd_jax.data import cifar_binary
from atkd_jax.models.network import Network
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config, teachers
from atkd_jax.training.evaluate import EVAL_BATCH
from atkd_jax.training.loader import make_feed
from atkd_jax.types import PyTree
from experiments import roc, runs
from experiments.runs import Run
from experiments.schema import COUNT, CURVES, Kind, fault

ROOT = Path(__file__).parent.parent
# Data with the same classes in the same order, for accuracy on images of another origin. Of the
# 90,000 test images of CINIC-10, 10,000 are CIFAR-10's test images and 10,000 are training images
# of CIFAR-10 (github BayesWatch/cinic-10), which TFDS does not tell from the 70,000 of ImageNet.
UNSEEN = {"cifar10": "cinic10"}


class Damaged(ValueError):
    """The folder of a finished run does not hold what it should."""


def measure(run: Run, folder: Path, summary: dict[str, Any], commit: str) -> dict[str, Any]:
    """The result line of the run in `folder`, whose summary.json is `summary`.

    Its times are those of all students that were trained in one program, divided by their number
    ("company").

    Raises:
      Damaged: a file of the run is.
      ValueError: its data or its teacher are not there.
    """
    config = run.config
    feed = make_feed(from_config.source(config), Parallel("none"), config.batch_size, config.seed)
    network = from_config.network(config, config.student, feed.info)
    export = folder / "export"
    try:
        variables = load_export(export, teachers.variables_like(network, feed.info))
    except ValueError as error:
        raise Damaged(str(error)) from error
    prob, label = predict(network, variables, feed)
    other = UNSEEN.get(config.data.name)
    resolved = config.to_dict()
    resolved["teacher"]["weights"] = runs.resolve(
        run.text, run.role, run.protocol, run.seed
    ).config.teacher.weights  # its name: where it lies is nobody's business
    return {
        "hash": run.hash,
        "config": run.text,
        "role": run.role,
        "protocol": run.protocol,
        "seed": run.seed,
        "last": summary["last"],
        "best": summary["best"],
        "areas": roc.areas(prob, label),
        "unseen": top1_on(other, config, network, variables) if other else None,
        "teacher": about_teacher(run, feed.info, summary),
        "student": summary["student"] | {"hash": hash_of(variables)},
        "seconds": round(summary["seconds"], 1),
        "images_per_second": round(summary["images_per_second"], 1),
        "company": summary.get("company", 1),
        "hardware": summary["hardware"],
        "versions": summary["versions"],
        "commit": commit,
        "history": history(folder, config.epochs),
        "roc": roc.curves(prob, label) if run.seed == 0 else {},
        "matrix": matrix(folder, config.epochs),
        "class_names": summary["class_names"][: roc.CURVE_CLASSES],
        "resolved": resolved,
    }


def predict(network: Network, variables: PyTree, feed) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities [N, K] and labels [N] of the whole test set."""

    @jax.jit
    def one(variables, data, item):
        batch = feed.fetch(data, item)
        out = network.apply(variables, batch.image.astype(jnp.float32) / 255.0)
        return jax.nn.softmax(out.logits), batch.label, batch.mask

    probs, labels = [], []
    for stack in feed.test(min(EVAL_BATCH, feed.info.num_test)):
        for i in range(len(jax.tree.leaves(stack)[0])):
            item = jax.tree.map(lambda x, i=i: x[i], stack)
            prob, label, mask = jax.device_get(one(variables, feed.test_data, item))
            probs.append(prob[mask])
            labels.append(label[mask])
    return np.concatenate(probs), np.concatenate(labels)


def top1_on(name: str, config, network: Network, variables: PyTree) -> float | None:
    """Accuracy in percent on a data set of the same classes; None if it is not prepared here."""
    if not prepared(name, config.data.data_dir):
        return None
    source = data.load(name, data_dir=config.data.data_dir or None)
    prob, label = predict(network, variables, make_feed(source, Parallel("none"), 1, 0))
    return 100 * float(np.mean(prob.argmax(1) == label))


def prepared(name: str, data_dir: str = "") -> bool:
    """Whether the data set is on this machine."""
    if name == "digits" or cifar_binary.find(name, data_dir):
        return True
    folder = cifar_binary.folder_of(data_dir) / data.tfds_name(name)
    return any(folder.rglob("dataset_info.json"))


def about_teacher(run: Run, info, summary: dict[str, Any]) -> dict[str, Any] | None:
    """Which weights taught, and how good they are."""
    if "teacher" not in summary:
        return None
    path = Path(run.config.teacher.weights)
    if path.is_dir():
        network = from_config.network(run.config, run.config.teacher.model, info)
        found = hash_of(load_export(path, teachers.variables_like(network, info)))
    else:
        found = runs.digest(path)[: runs.HASH_DIGITS]
    return summary["teacher"] | {"hash": found}


def hash_of(variables: PyTree) -> str:
    """SHA-256 of all numbers of a network, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[: runs.HASH_DIGITS]


def history(folder: Path, epochs: int) -> dict[str, list[float]]:
    """Curves over the epochs, from metrics.jsonl."""
    rows = metrics(folder, epochs, {key: kind for key, (kind,) in CURVES.items()})
    return {key: [round(row[key], 4) for row in rows] for key in CURVES}


def metrics(folder: Path, epochs: int, kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, one per epoch, which have values of these kinds.

    Raises:
      ValueError: a row is damaged or missing.
    """
    path, rows = folder / "metrics.jsonl", []
    try:
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            row = json.loads(text)
            if wrong := fault(row, {"epoch": COUNT} | kinds):
                raise ValueError(wrong)
            if row["epoch"] != number:
                raise ValueError(f"it is of epoch {row['epoch']}")
            rows.append(row)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}:{len(rows) + 1} is damaged: {error}") from error
    if len(rows) != epochs:
        raise Damaged(f"{path} has {len(rows)} of {epochs} epochs")
    return rows


def matrix(folder: Path, epochs: int) -> list[list[float]]:
    """RTK's or AFD's attention [student, teacher], mean of the last epoch; empty for others.

    Raises:
      ValueError: the file is damaged, or missing where other epochs have one.
    """
    files = sorted((folder / "epochs").glob("*.npz"))
    if not files:
        return []
    path = folder / "epochs" / f"{epochs:04d}.npz"
    try:
        with np.load(path) as arrays:
            names = [name for name in arrays if name.endswith("attention")]
            return np.round(arrays[names[0]], 4).tolist() if names else []
    except Exception as error:  # a damaged zip raises all kinds of things
        raise Damaged(f"{path} is damaged or missing: {error}") from error


def commit() -> str:
    """The commit of this checkout, "-dirty" if the code was changed since; empty without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout

    code = ("atkd_jax", "configs", "experiments/*.py")
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", *code).strip()
        return git("rev-parse", "--short", "HEAD").strip() + ("-dirty" if changed else "")
    except OSError:
        return ""
