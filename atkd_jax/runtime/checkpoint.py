"""All calls to Orbax: checkpoints of a run, and exported networks that can become teachers."""

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


def _with_sharding(abstract: PyTree, sharding: Sharding) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )


def crc32(tree: PyTree, meta: dict[str, Any]) -> int:
    """A checksum of all arrays, their names and a JSON value.

    Neither Orbax nor TensorStore has one: a flipped bit in a file would go unnoticed.
    """
    crc = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        crc = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
    return crc


def _reason(error: Exception) -> str:
    """The system's message, else the first line of the error's own, shortened in the middle."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code=\W*(\d+)", str(error)):  # TensorStore's
        return os.strerror(int(code[1]))
    line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return line if len(line) < 250 else f"{line[:100]} ... {line[-140:]}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides the tracebacks that Orbax, asyncio and TensorStore print besides raising an error.

    Their threads print them later, so after an error these loggers stay disabled.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)

    def show(unraisable):
        late = str(unraisable.exc_value) == "Event loop is closed"  # TensorStore, after Orbax
        code = getattr(unraisable.object, "cr_code", None)  # of a read that Orbax abandoned
        if not (late or (code and "orbax" in Path(code.co_filename).parts)):
            hook(unraisable)

    sys.unraisablehook = show
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    sys.unraisablehook = hook


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the many kinds of errors that Orbax and TensorStore raise into one OSError."""
    try:
        with _silence():
            yield
    except jax.errors.JaxRuntimeError:  # another host is gone
        raise
    except Exception as error:
        raise unwritable(path, _reason(error)) from error


def nonfinite(tree: PyTree) -> str | None:
    """The path of the first array that contains a NaN or an infinity; None if there is none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        if not np.all(np.isfinite(leaf)):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


class Checkpoints:
    """The last `keep` checkpoints of a run, in `directory`.

    A checkpoint is a tree of arrays and a small JSON value. Incomplete ones, left by a killed
    process, are ignored.

    Raises:
      OSError: `directory` cannot be written.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory
        with _writing(directory):
            self.manager = ocp.CheckpointManager(
                directory.absolute(),
                # Not asynchronous: Orbax's threads wait five minutes for a folder that cannot be
                # created, and checking a state for NaNs waits for the devices anyway.
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=True,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=False,
                ),
            )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        return self.manager.latest_step()

    def diverged(self, what: str) -> FloatingPointError:
        """The error for a run whose loss or state is no longer finite."""
        kept = self.latest()
        return FloatingPointError(
            f"{what};"
            + (f" the checkpoint of step {kept} is kept;" if kept is not None else "")
            + " lower optimizer.lr or the term's weight"
        )

    def save(self, step: int, tree: PyTree, meta: dict[str, Any]) -> None:
        """Writes a checkpoint and returns when it is on disk. The newest step is not rewritten.

        Raises:
          FloatingPointError: a value is NaN or infinite; no run can resume from it.
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
          UserError: the checkpoint is damaged, or from another kind of run.
        """
        tree_args = ocp.args.StandardRestore(_with_sharding(abstract, sharding))
        args = ocp.args.Composite(tree=tree_args, meta=ocp.args.JsonRestore())
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
    """Names of the entries of a folder that `save_export` wrote, complete or not."""
    try:
        read_export_meta(directory)
        return list(EXPORTED)
    except UserError:  # killed before meta.json was written
        begun = (directory / "variables" / "_CHECKPOINT_METADATA").exists()
        drafts = (path.name for path in directory.glob("variables.orbax-checkpoint-tmp*"))
        return [*drafts, *(["variables"] if begun else [])]


def save_export(directory: Path, variables: PyTree, meta: dict[str, Any]) -> None:
    """Writes {"params", "batch_stats"} of one network and the facts needed to use it again.

    An earlier export stays until the new one is complete.

    Args:
      meta: the keys that `read_export_meta` checks, and further ones.

    Raises:
      OSError: it cannot be written.
      UserError: a user's files would be overwritten.
    """
    first, directory = jax.process_index() == 0, directory.absolute()
    building: contextlib.AbstractContextManager[Path]
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
    """Not asynchronous, as in `Checkpoints`."""
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def read_export_meta(directory: Path) -> dict[str, Any]:
    """The JSON value beside exported variables.

    Raises:
      UserError: there is no finished export, or its meta.json is invalid.
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


def load_export(directory: Path, abstract: PyTree, meta: dict[str, Any] | None = None) -> PyTree:
    """Reads exported variables as host arrays, in the structure of `abstract`.

    Args:
      meta: of `read_export_meta`, if it has been read already.

    Raises:
      UserError: tensors are missing, have other shapes, or are damaged.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    args = ocp.args.StandardRestore(_with_sharding(abstract, here))
    try:
        with _silence(), _checkpointer() as checkpointer:
            variables = checkpointer.restore(directory.absolute() / "variables", args=args)
    except Exception as error:
        raise UserError(f"cannot read the network in {directory}: {_reason(error)}") from error
    meta = meta or read_export_meta(directory)
    if meta.get("crc32") not in (None, crc32(variables, {})):
        raise UserError(f"the network in {directory} is damaged: its checksum differs")
    return jax.tree.map(np.asarray, variables)
