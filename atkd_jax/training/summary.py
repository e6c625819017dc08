"""Describes a run: a row of its log, the metadata of its export, and summary.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from atkd_jax.data import preparation
from atkd_jax.models.network import Network
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.runtime import run_files
from atkd_jax.training.loader import Loader
from atkd_jax.types import DataInfo, PyTree


def log_row(step: int, epoch: int, means: dict[str, np.ndarray], test: dict[str, float]) -> dict:
    """One epoch as a row of the log: unchanged losses, accuracies in percent."""
    row = {f"train/{key}": float(mean) for key, mean in means.items() if not mean.ndim}
    row["train/top1"] *= 100
    return {"step": step, "epoch": epoch + 1} | row | {f"test/{k}": v for k, v in test.items()}


def about_network(name: str, network: Network, params: PyTree, info: DataInfo) -> dict[str, Any]:
    """Name and size of a network."""
    macs = count_macs(network.module, info.image_shape)
    return {"model": name, "params": count_params(params), "macs": macs}


def about_student(
    config: ConfigDict, student: Network, params: PyTree, info: DataInfo
) -> dict[str, Any]:
    """Name and size of a student, and the number of parameters of its methods.

    Args:
      params: of a TrainState; shapes are enough.
    """
    return {
        "student": about_network(config.student, student, params["student"], info),
        "method_params": count_params(params["method"]),
    }


def export_meta(
    config: ConfigDict, student: Network, loader: Loader, history: list[dict]
) -> dict[str, Any]:
    """Metadata that other programs need to use the exported student."""
    return {
        "model": config.student,
        "num_classes": loader.info.num_classes,
        "class_names": loader.info.class_names,
        "data": loader.info.name,
        "image_shape": loader.info.image_shape,
        "mean": student.mean,
        "std": student.std,
        "preparation": preparation.describe(loader.source),
        "top1": history[-1]["top1"],
    }


def results(config: ConfigDict, info: DataInfo, history: list[dict]) -> dict[str, Any]:
    """Accuracies, data, hardware, versions and configuration."""
    return {
        "data": info.name,
        "class_names": info.class_names,
        "last": history[-1],
        "best": max(history, key=lambda row: row["top1"]),
        "hardware": run_files.hardware(),
        "versions": run_files.versions(),
        "config": config.to_dict(),
    }
