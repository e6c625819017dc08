"""All calls to Orbax: checkpoints of a run, and exports that another run can use as its teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from atkd_jax.types import PyTree

EXPORT_META = "meta.json"


def _target(tree: PyTree, sharding: Sharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


class Checkpoints:
    """The last `keep` checkpoints of a run in `directory`, written in the background.

    A checkpoint is a tree of arrays and a small JSON value. It counts only once it is whole: one
    that a killed process left half-written is ignored.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory
        self.manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, cleanup_tmp_directories=True
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint; None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, tree: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing; returns before it is done. A step that is there already is kept."""
        if step == self.latest():
            return
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self.manager.save(step, args=args, force=True)

    def restore(self, step: int, like: PyTree, sharding: Sharding) -> tuple[PyTree, dict[str, Any]]:
        """Reads a checkpoint into the structure, shapes and dtypes of `like`.

        Raises:
          ValueError: the checkpoint is damaged or was written by a different kind of run.
        """
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(_target(like, sharding)), meta=ocp.args.JsonRestore()
        )
        try:
            restored = self.manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            raise ValueError(
                f"checkpoint {self.directory / str(step)} cannot be read: it is damaged or from"
                f" another run ({reason[:200]}). Move it away to go on from the one before it,"
                " or start in another --workdir."
            ) from error
        return restored["tree"], restored["meta"]

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def save_export(directory: Path, variables: PyTree, meta: dict[str, Any]) -> None:
    """Writes {"params", "batch_stats"} of one network and what is needed to use it again.

    Args:
      meta: model, num_classes, mean, std, and anything worth knowing (data, top1, ...).
    """
    directory = directory.absolute()
    if jax.process_index() == 0 and directory.exists():
        shutil.rmtree(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "variables", variables)
    if jax.process_index() == 0:
        (directory / EXPORT_META).write_text(json.dumps(meta, indent=2) + "\n")


def read_export_meta(directory: Path) -> dict[str, Any]:
    """The JSON value beside exported variables.

    Raises:
      ValueError: there is no finished export.
    """
    try:
        return json.loads((directory / EXPORT_META).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{directory} holds no exported network (no readable {EXPORT_META}); give the export/"
            " folder of a finished run, or a .safetensors or .pth file"
        ) from error


def load_export(directory: Path, like: PyTree) -> PyTree:
    """The exported variables as host arrays, in the structure of `like`.

    Raises:
      ValueError: tensors are missing or have other shapes.
    """
    target = _target(like, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            variables = checkpointer.restore(directory.absolute() / "variables", target)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ValueError(f"cannot read the network in {directory}: {reason[:300]}") from error
    return jax.tree.map(np.asarray, variables)
