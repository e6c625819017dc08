"""All calls to Orbax: checkpoints of a run, and exports that another run can use as its teacher."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from atkd_jax.errors import UserError, unwritable
from atkd_jax.ranges import STATISTICS
from atkd_jax.runtime import json_file, replace
from atkd_jax.types import PyTree

EXPORT_META = "meta.json"
EXPORTED = ("variables", EXPORT_META)


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
    """What the system says, else the first line that says something, without a long middle."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code=\W*(\d+)", str(error)):  # TensorStore's
        return os.strerror(int(code[1]))
    line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return line if len(line) < 250 else f"{line[:100]} ... {line[-140:]}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Orbax, asyncio and TensorStore tell of an error in tracebacks of their own.

    Their threads do so later than it is raised, so after one they stay silent.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)

    def show(unraisable):
        late = str(unraisable.exc_value) == "Event loop is closed"  # TensorStore, of Orbax's
        code = getattr(unraisable.object, "cr_code", None)  # of a read that Orbax has given up
        if not (late or (code and "orbax" in Path(code.co_filename).parts)):
            hook(unraisable)

    sys.unraisablehook = show
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    sys.unraisablehook = hook


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise, which is of many kinds, into one OSError."""
    try:
        with _silence():
            yield
    except jax.errors.JaxRuntimeError:  # another host is gone
        raise
    except Exception as error:
        raise unwritable(path, _reason(error)) from error


def nonfinite(tree: PyTree) -> str | None:
    """The path of the first array with a number that is not finite; no run could go on with it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        if not np.all(np.isfinite(leaf)):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


class Checkpoints:
    """The last `keep` checkpoints of a run in `directory`.

    A checkpoint is a tree of arrays and a small JSON value. It counts only once it is whole: one
    that a killed process left half-written is ignored.

    Raises:
      OSError: `directory` cannot be written.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory
        with _writing(directory):
            self.manager = ocp.CheckpointManager(
                directory.absolute(),
                # Not in the background: Orbax's threads wait five minutes for a folder that cannot
                # be made, and the check of a state's numbers waits for the devices as it is.
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=True,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=False,
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
        """Returns when all is on the disk. A step that is there already is kept.

        Raises:
          FloatingPointError: a number of the tree is not finite, with which no run could go on.
          OSError: it cannot be written.
        """
        if step == self.latest():
            return
        if where := nonfinite(tree):
            raise self.diverged(f"the state after step {step} is not finite (in: {where})")
        meta = {"meta": meta, "crc32": crc32(tree, meta)}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        with _writing(self.directory):
            self.manager.save(step, args=args, force=True)

    def read_meta(self, step: int) -> dict[str, Any]:
        """The JSON value of a checkpoint.

        Raises:
          UserError: it cannot be read.
        """
        try:
            with _silence():
                args = ocp.args.Composite(meta=ocp.args.JsonRestore())
                return self.manager.restore(step, args=args)["meta"]["meta"]
        except Exception as error:  # Orbax raises many kinds
            raise UserError(self._unusable(step, _reason(error))) from error

    def restore(
        self, step: int, abstract: PyTree, sharding: Sharding
    ) -> tuple[PyTree, dict[str, Any]]:
        """Reads a checkpoint into the structure, shapes and dtypes of `abstract`.

        Raises:
          UserError: the checkpoint is damaged (its checksum tells), or another kind of run's.
        """
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(_target(abstract, sharding)), meta=ocp.args.JsonRestore()
        )
        try:
            with _silence():
                restored = self.manager.restore(step, args=args)
            tree, (meta, crc) = restored["tree"], (restored["meta"][k] for k in ("meta", "crc32"))
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise UserError(self._unusable(step, _reason(error))) from error
        if crc != crc32(tree, meta):
            raise UserError(self._unusable(step, "its checksum differs from what was written"))
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
        with _silence():
            self.manager.close()


def exported(directory: Path) -> list[str]:
    """Names of the entries that `save_export` has written into a folder, whole or not."""
    try:
        read_export_meta(directory)
        return list(EXPORTED)
    except UserError:  # killed before that was written
        begun = (directory / "variables" / "_CHECKPOINT_METADATA").exists()
        drafts = (path.name for path in directory.glob("variables.orbax-checkpoint-tmp*"))
        return [*drafts, *(["variables"] if begun else [])]


def save_export(directory: Path, variables: PyTree, meta: dict[str, Any]) -> None:
    """Writes {"params", "batch_stats"} of one network and what is needed to use it again.

    An earlier export stays until the new one is whole.

    Args:
      meta: model, num_classes, mean, std, and anything worth knowing (data, top1, ...).

    Raises:
      OSError: it cannot be written.
      UserError: files of a user's are in the way.
    """
    first, directory = jax.process_index() == 0, directory.absolute()
    if first:
        building = replace.replacing(directory, exported)
    else:
        building = contextlib.nullcontext(replace.draft_of(directory))
    with building as draft:
        multihost_utils.sync_global_devices("the draft of an export is made")
        with _writing(directory), _checkpointer() as checkpointer:
            checkpointer.save(draft / "variables", args=ocp.args.StandardSave(variables))
        if first:
            meta = meta | {"crc32": crc32(variables, {})}
            (draft / EXPORT_META).write_text(json.dumps(meta, indent=2) + "\n")
    multihost_utils.sync_global_devices("an export is written")


def _checkpointer() -> ocp.Checkpointer:
    """Works here and now, as `Checkpoints` does."""
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def read_export_meta(directory: Path) -> dict[str, Any]:
    """The JSON value beside exported variables.

    Raises:
      UserError: there is no finished export, or somebody has edited that file badly.
    """
    path = directory / EXPORT_META
    if not os.path.lexists(path):
        raise UserError(
            f"{directory} holds no exported network (there is no {EXPORT_META}); give the export/"
            " folder of a finished run, or a file of published weights"
        )
    return json_file.read(
        path,
        "what a run writes beside its network",
        "put the run's own file back, or take the export of another run",
        {
            "model": json_file.is_text,
            "num_classes": json_file.is_count,
            "class_names": json_file.is_list_of(json_file.is_text),
            "data": json_file.is_text,
            "image_shape": json_file.is_list_of(json_file.is_count, 3),
            **{key: range.holds for key, range in STATISTICS.items()},
            "top1": json_file.is_number,
        },
    )


def load_export(directory: Path, abstract: PyTree) -> PyTree:
    """The exported variables as host arrays, in the structure of `abstract`.

    Raises:
      UserError: tensors are missing, have other shapes, or are not what was written.
    """
    target = _target(abstract, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    try:
        with _silence(), _checkpointer() as checkpointer:
            args = ocp.args.StandardRestore(target)
            variables = checkpointer.restore(directory.absolute() / "variables", args=args)
    except Exception as error:
        raise UserError(f"cannot read the network in {directory}: {_reason(error)}") from error
    if read_export_meta(directory).get("crc32") not in (None, crc32(variables, {})):
        raise UserError(f"the network in {directory} is damaged: its checksum differs")
    return jax.tree.map(np.asarray, variables)
