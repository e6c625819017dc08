"""The result line of a finished job, with areas under the curve and the data of figures."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import data
from atkd_jax.errors import UserError
from atkd_jax.models.network import Network
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config, teachers
from atkd_jax.training.evaluate import EVAL_BATCH
from atkd_jax.training.loader import Loader, make_loader
from atkd_jax.types import DataInfo, PyTree
from experiments.queue import jobs
from experiments.queue.jobs import Job
from experiments.results import roc
from experiments.results.schema import COUNT, CURVES, Damaged, Kind, Line, fault, tested_epochs

ROOT = Path(__file__).parents[2]
# Data sets with the same classes in the same order, for accuracy on images of another origin. Of
# the 90,000 test images of CINIC-10, 10,000 are CIFAR-10's test images and 10,000 are training
# images of CIFAR-10 (github BayesWatch/cinic-10), which TFDS does not distinguish from the 70,000
# of ImageNet.
UNSEEN = {"cifar10": "cinic10"}


def measure(job: Job, folder: Path, summary: dict[str, Any], commit: str) -> Line:
    """The result line of the job in `folder`, whose summary.json is `summary`.

    Its times are those of all students that were trained together, divided by their number
    ("company").

    Raises:
      Damaged: a file of the job is.
      UserError: its data or its teacher are missing.
    """
    config = job.config
    source = from_config.source(config)
    loader = make_loader(source, Parallel("none"), config.batch_size, config.seed)
    network = from_config.network(config, config.student, loader.info)
    export = folder / "export"
    try:
        variables = load_export(export, teachers.abstract_variables(network, loader.info))
    except UserError as error:
        raise Damaged(str(error)) from error
    prob, label = predict(network, variables, loader)
    other = UNSEEN.get(config.data.name)
    resolved = config.to_dict()
    # The name of the teacher, not the path where it lies on this machine.
    named = jobs.resolve(job.text, job.role, job.protocol, job.seed).config
    resolved["teacher"]["weights"] = named.teacher.weights
    return {
        "hash": job.hash,
        "config": job.text,
        "role": job.role,
        "protocol": job.protocol,
        "seed": job.seed,
        "last": summary["last"],
        "best": summary["best"],
        "areas": roc.areas(prob, label),
        "unseen": top1_on(other, config, network, variables) if other else None,
        "teacher": about_teacher(job, loader.info, summary),
        "student": summary["student"] | {"hash": hash_of(variables)},
        "seconds": round(summary["seconds"], 1),
        "images_per_second": round(summary["images_per_second"], 1),
        "company": summary.get("company", 1),
        "hardware": summary["hardware"],
        "versions": summary["versions"],
        "commit": commit,
        "history": history(folder, resolved),
        "roc": roc.curves(prob, label) if job.seed == 0 else {},
        "matrix": matrix(folder, config.epochs),
        "class_names": summary["class_names"][: roc.CURVE_CLASSES],
        "resolved": resolved,
    }


def predict(network: Network, variables: PyTree, loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities [N, K] and labels [N] of the whole test set."""

    @jax.jit
    def predict_batch(variables: PyTree, data: PyTree, item: PyTree):
        batch = loader.fetch(data, item)
        out = network.apply(variables, batch.image.astype(jnp.float32) / 255.0)
        return jax.nn.softmax(out.logits), batch.label, batch.mask

    probs, labels = [], []
    for stack in loader.test(min(EVAL_BATCH, loader.info.num_test)):
        for i in range(len(jax.tree.leaves(stack)[0])):
            item = jax.tree.map(lambda x, i=i: x[i], stack)
            prob, label, mask = jax.device_get(predict_batch(variables, loader.test_data, item))
            probs.append(prob[mask])
            labels.append(label[mask])
    return np.concatenate(probs), np.concatenate(labels)


def top1_on(name: str, config: ConfigDict, network: Network, variables: PyTree) -> float | None:
    """Accuracy in percent on a data set of the same classes; None if it is not prepared."""
    if not prepared(name, config.data.data_dir):
        return None
    source = data.load(name, data_dir=config.data.data_dir or None)
    prob, label = predict(network, variables, make_loader(source, Parallel("none"), 1, 0))
    return 100 * float(np.mean(prob.argmax(1) == label))


def prepared(name: str, data_dir: str = "") -> bool:
    """Whether the data set is on this machine."""
    return data.create(name).present(data_dir or None)


def about_teacher(job: Job, info: DataInfo, summary: dict[str, Any]) -> dict[str, Any] | None:
    """The teacher's size, its accuracy, and the hash of its weights; None without a teacher."""
    if "teacher" not in summary:
        return None
    path = Path(job.config.teacher.weights)
    if path.is_dir():
        network = from_config.network(job.config, job.config.teacher.model, info)
        found = hash_of(load_export(path, teachers.abstract_variables(network, info)))
    else:
        found = jobs.digest(path)[: jobs.HASH_DIGITS]
    return summary["teacher"] | {"hash": found}


def hash_of(variables: PyTree) -> str:
    """SHA-256 of all numbers of a network, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[: jobs.HASH_DIGITS]


def history(folder: Path, resolved: dict[str, Any]) -> dict[str, list[float]]:
    """Curves over the tested epochs, from metrics.jsonl."""
    rows = metrics(folder, tested_epochs(resolved), {key: kind for key, (kind,) in CURVES.items()})
    return {key: [round(row[key], 4) for row in rows] for key in CURVES}


def metrics(folder: Path, epochs: list[int], kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, one per tested epoch.

    Args:
      epochs: those that were tested.
      kinds: of values that every row has.

    Raises:
      Damaged: a row is damaged or missing.
    """
    path, rows = folder / "metrics.jsonl", []
    try:
        for text in path.read_bytes().splitlines():
            row = json.loads(text)
            if wrong := fault(row, {"epoch": COUNT} | kinds):
                raise Damaged(wrong)
            if row["epoch"] not in epochs[len(rows) : len(rows) + 1]:
                raise Damaged(f"it is of epoch {row['epoch']}")
            rows.append(row)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}:{len(rows) + 1} is damaged: {error}") from error
    if len(rows) != len(epochs):
        raise Damaged(f"{path} has {len(rows)} of {len(epochs)} epochs")
    return rows


def matrix(folder: Path, epochs: int) -> list[list[float]]:
    """RTK's or AFD's attention [student, teacher], mean of the last epoch; empty for others.

    Raises:
      Damaged: the file is damaged, or missing where other epochs have one.
    """
    files = sorted((folder / "epochs").glob("*.npz"))
    if not files:
        return []
    path = folder / "epochs" / f"{epochs:04d}.npz"
    try:
        with np.load(path) as arrays:
            names = [name for name in arrays if name.endswith("attention")]
            return np.round(arrays[names[0]], 4).tolist() if names else []
    except Exception as error:  # a damaged zip file raises errors of many types
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
