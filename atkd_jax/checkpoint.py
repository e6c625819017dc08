"""All calls to Orbax: checkpoints of a run, and exports that another run can use as its teacher."""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from atkd_jax.errors import unwritable
from atkd_jax.types import PyTree

EXPORT_META = "meta.json"


def _target(tree: PyTree, sharding: Sharding) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def crc32(tree: PyTree, meta: dict[str, Any]) -> int:
    """A checksum of all arrays, their names and a JSON value. Neither Orbax nor TensorStore has
    one: a flipped bit in a file would be a flipped bit in a parameter."""
    crc = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        crc = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), crc)
    return crc


def _reason(error: Exception) -> str:
    """The first line that says something, without its middle if it is long."""
    line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return line if len(line) < 250 else f"{line[:100]} ... {line[-140:]}"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise, which is of many kinds, into one OSError."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # another host is gone
        raise
    except Exception as error:
        raise unwritable(path, _reason(error)) from error


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

    def diverged(self, what: str) -> FloatingPointError:
        """The error for a run whose numbers are not finite any more."""
        kept = self.latest()
        return FloatingPointError(
            f"{what};"
            + (f" the checkpoint of step {kept} is kept;" if kept is not None else "")
            + " lower optimizer.lr or the term's weight"
        )

    def save(self, step: int, tree: PyTree, meta: dict[str, Any]) -> None:
        """Starts writing; returns before it is done. A step that is there already is kept.

        Raises:
          FloatingPointError: a number of the tree is not finite, with which no run could go on.
          OSError: this one, or the one before, cannot be written.
        """
        if step == self.latest():
            return
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
            if not np.all(np.isfinite(leaf)):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise self.diverged(f"the state after step {step} is not finite (in: {where})")
        meta = {"meta": meta, "crc32": crc32(tree, meta)}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        with _writing(self.directory):  # its own start, and the end of the one before
            self.manager.save(step, args=args, force=True)

    def restore(self, step: int, like: PyTree, sharding: Sharding) -> tuple[PyTree, dict[str, Any]]:
        """Reads a checkpoint into the structure, shapes and dtypes of `like`.

        Raises:
          ValueError: the checkpoint is damaged (its checksum tells), or another kind of run's.
        """
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(_target(like, sharding)), meta=ocp.args.JsonRestore()
        )
        try:
            restored = self.manager.restore(step, args=args)
            tree, (meta, crc) = restored["tree"], (restored["meta"][k] for k in ("meta", "crc32"))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise ValueError(self._unusable(step, _reason(error))) from error
        if crc != crc32(tree, meta):
            raise ValueError(self._unusable(step, "its checksum differs from what was written"))
        return tree, meta

    def _unusable(self, step: int, reason: str) -> str:
        path = self.directory / str(step)
        before = [other for other in self.manager.all_steps() if other < step]
        hint = (
            f"To go on from step {max(before)} instead, move it away:"
            f" mv {path} {self.directory.parent / f'damaged-{step}'}"
            if before
            else "There is none before it; start in another --workdir"
        )
        return f"checkpoint {path} is damaged or from another run and not used ({reason}). {hint}"

    def close(self) -> None:
        """Waits until everything is on the disk."""
        with _writing(self.directory):
            self.manager.wait_until_finished()
        self.manager.close()


def save_export(directory: Path, variables: PyTree, meta: dict[str, Any]) -> None:
    """Writes {"params", "batch_stats"} of one network and what is needed to use it again.

    Args:
      meta: model, num_classes, mean, std, and anything worth knowing (data, top1, ...).

    Raises:
      OSError: it cannot be written.
    """
    directory = directory.absolute()
    if jax.process_index() == 0 and directory.exists():
        shutil.rmtree(directory)
    with _writing(directory):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / "variables", variables)
    meta = meta | {"crc32": crc32(variables, {})}
    if jax.process_index() == 0:
        (directory / EXPORT_META).write_text(json.dumps(meta, indent=2) + "\n")
    multihost_utils.sync_global_devices(f"{directory} is written")


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
            " folder of a finished run, or a file of published weights"
        ) from error


def load_export(directory: Path, like: PyTree) -> PyTree:
    """The exported variables as host arrays, in the structure of `like`.

    Raises:
      ValueError: tensors are missing, have other shapes, or are not what was written.
    """
    target = _target(like, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            variables = checkpointer.restore(directory.absolute() / "variables", target)
    except Exception as error:
        raise ValueError(f"cannot read the network in {directory}: {_reason(error)}") from error
    if read_export_meta(directory).get("crc32") not in (None, crc32(variables, {})):
        raise ValueError(f"the network in {directory} is damaged: its checksum differs")
    return jax.tree.map(np.asarray, variables)
