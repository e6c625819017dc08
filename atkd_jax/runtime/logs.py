"""A run's logs: JSON lines, TensorBoard events, and a progress bar or plain lines."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import jax
from tqdm import tqdm

from atkd_jax.errors import UserError
from atkd_jax.runtime.events import Events

METRICS = "metrics.jsonl"


class Log:
    """`metrics.jsonl` and TensorBoard events in `workdir`; host 0 only.

    Args:
      rows: of the finished epochs, from the checkpoint. The file is rewritten from them, so that
        the log of a resumed run equals that of an uninterrupted one, whatever a killed process
        left.
      name: of the student, if several are trained together.
    """

    def __init__(self, workdir: Path, rows: list[dict[str, float]], name: str = ""):
        self.active, self.name = jax.process_index() == 0, name
        if not self.active:
            return
        self.path = workdir / METRICS
        draft = self.path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(draft, self.path)  # atomic: a killed process leaves the old file or the new one
        last = rows[-1]["step"] if rows else 0
        self.events = Events(workdir / "tensorboard", purge_step=int(last) + 1)

    def epoch(self, row: dict[str, float]) -> None:
        """Logs the metrics of an epoch and prints a summary of them."""
        if not self.active:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        values = {key: value for key, value in row.items() if key not in ("step", "epoch")}
        self.events.scalars(values, int(row["step"]))
        who = f"{self.name}: " if self.name else ""
        self.print(
            f"{who}epoch {row['epoch']}: loss {row['train/loss']:.4f}, train top-1"
            f" {row['train/top1']:.2f}, test top-1 {row['test/top1']:.2f}"
        )

    def print(self, text: str) -> None:
        """Prints a line without disturbing the progress bar."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        if self.active:
            self.events.close()


def read_rows(workdir: Path, last_step: int) -> list[dict[str, float]]:
    """Reads the rows of `metrics.jsonl` up to a step, for old checkpoints that lack them.

    Raises:
      UserError: a line is not a row.
    """
    path, rows = workdir / METRICS, []
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError(f"line {number} is no row with a step")
            if row["step"] > last_step:
                break
            rows.append(row)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); move it away: the run goes on without what it logged"
        ) from error
    return rows


class Progress:
    """A progress bar with ETA and images per second on a terminal, else a line every minute."""

    def __init__(self, log: Log, what: str, total: int, done: int, images_per_step: int):
        self.log, self.what, self.total, self.images = log, what, total, images_per_step
        self.done, self.printed = done, time.monotonic()
        self.begin = (done, self.printed)  # (steps done, when)
        self.warm: tuple[int, float] | None = None
        terminal = log.active and sys.stdout.isatty()
        self.bar = tqdm(total=total, initial=done, desc=what, unit="step") if terminal else None

    @property
    def images_per_second(self) -> float:
        """Training speed including evaluation, and excluding compilation after the first call."""
        done, since = self.warm if self.warm and self.done > self.warm[0] else self.begin
        return (self.done - done) * self.images / max(time.monotonic() - since, 1e-9)

    def advance(self, step: int, loss: float) -> None:
        """Reports that `step` steps are done."""
        before, self.done = self.done, step
        self.warm = self.warm or (step, time.monotonic())
        speed = self.images_per_second
        if self.bar is not None:
            self.bar.set_postfix_str(f"{speed:.0f} img/s, loss {loss:.3f}")
            self.bar.update(step - before)
        elif time.monotonic() - self.printed > 60:
            self.printed = time.monotonic()
            left = (self.total - step) * self.images / max(speed, 1e-9)
            self.log.print(
                f"{self.what}: step {step}/{self.total}, loss {loss:.3f}, {speed:.0f} img/s,"
                f" {left / 60:.0f} min left"
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
