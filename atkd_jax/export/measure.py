"""Runs an exported file in its own runtime, in a separate process, and compares it with JAX."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import atkd_jax
from atkd_jax.errors import UserError

TOLERANCE = 1e-4  # of the logits' range, for files that compute in float32


class Answers(NamedTuple):
    """Outputs and cost of a file: logits [N, K], seconds [N], memory in bytes."""

    logits: np.ndarray
    seconds: np.ndarray
    memory: float


class Row(NamedTuple):
    """One row of the table.

    Attributes:
      format: name of the format.
      file: name of the file.
      bytes: its size on disk.
      top1: percent of the test set.
      drop: points of top-1 lost against JAX.
      agreement: percent of the test set on which it predicts the same class as JAX.
      milliseconds: per image, the median over the test set, on one thread.
      megabytes: peak memory that loading and running it add to a process.
    """

    format: str
    file: str
    bytes: int
    top1: float
    drop: float
    agreement: float
    milliseconds: float
    megabytes: float


def run(path: Path, images: Iterable[np.ndarray]) -> Answers:
    """Runs a file on images [B, H, W, 3] uint8, given in one or several parts.

    Raises:
      UserError: the file does not run.
    """
    images = iter(images)
    first = next(images)
    package = str(Path(atkd_jax.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    with tempfile.TemporaryDirectory() as folder:
        answer, errors = Path(folder) / "answer.npz", Path(folder) / "errors"
        height, width = map(str, first.shape[1:3])
        command = [sys.executable, "-m", "atkd_jax.export.runtime", str(path), height, width]
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(
                [*command, str(answer)], stdin=subprocess.PIPE, stderr=stderr, env=env
            ) as process,
        ):
            assert process.stdin is not None
            try:
                for part in itertools.chain([first], images):
                    process.stdin.write(np.ascontiguousarray(part).data)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has died; the last line of its stderr is the reason
        if process.returncode:
            *_, reason = errors.read_text(errors="replace").split("\n")[:-1] or ["no message"]
            raise UserError(f"{path.name} does not run ({process.returncode}): {reason}")
        with np.load(answer) as found:
            return Answers(found["logits"], found["seconds"], float(found["memory"]))


def check_numerics(name: str, logits: np.ndarray, expected: np.ndarray) -> None:
    """Raises UserError if a float32 file's logits [N, K] are not those of JAX."""
    error = np.max(np.abs(logits - expected)) / np.ptp(expected)
    if not error <= TOLERANCE:
        raise UserError(
            f"{name} is wrong: its logits differ from JAX's by {error:.1e} of their range, more"
            f" than {TOLERANCE:.0e}; its converter does not understand this network"
        )


def row(name: str, path: Path, answers: Answers, expected: np.ndarray, label: np.ndarray) -> Row:
    """The row of one file. expected: JAX's logits [N, K]; label: [N]."""
    ours, jax = answers.logits.argmax(1), expected.argmax(1)
    top1 = 100 * float(np.mean(ours == label))
    return Row(
        format=name,
        file=path.name,
        bytes=path.stat().st_size,
        top1=top1,
        drop=100 * float(np.mean(jax == label)) - top1,
        agreement=100 * float(np.mean(ours == jax)),
        milliseconds=1e3 * float(np.median(answers.seconds)),
        megabytes=answers.memory / 1e6,
    )


def table(top1: float, rows: list[Row]) -> str:
    """The table as Markdown, aligned for a terminal. top1: JAX's, in percent."""
    cells = [
        ("format", "size kB", "top-1 %", "drop", "same answer %", "ms / image", "memory MB"),
        ("---", *("---:",) * 6),
        ("JAX", "", f"{top1:.2f}", "", "", "", ""),
    ]
    for r in rows:
        share = f"{r.top1:.2f}", f"{r.drop:.2f}", f"{r.agreement:.2f}"
        cost = f"{r.milliseconds:.3f}", f"{r.megabytes:.1f}"
        cells.append((r.format, f"{r.bytes / 1e3:,.1f}", *share, *cost))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers in cells:
        line = [name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)
