"""What a run tells: JSON lines, TensorBoard events, and a progress bar or plain lines."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import jax
import tensorboardX
from tqdm import tqdm


class Log:
    """`metrics.jsonl` and TensorBoard events in `workdir`; host 0 only.

    Args:
      resume_step: what an earlier, killed process wrote after this step is dropped, so that the log
        of a resumed run reads like that of an uninterrupted one.
    """

    def __init__(self, workdir: Path, resume_step: int = 0):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.path = workdir / "metrics.jsonl"
        kept = [line for line in _whole_lines(self.path) if json.loads(line)["step"] <= resume_step]
        draft = self.path.with_suffix(".draft")
        draft.write_text("".join(line + "\n" for line in kept))
        os.replace(draft, self.path)  # a process killed right here keeps the old file
        self.events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resume_step + 1
        )

    def epoch(self, step: int, epoch: int, row: dict[str, float]) -> None:
        """One line of numbers for machines, one for people."""
        if not self.active:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": epoch} | row) + "\n")
        for name, value in row.items():
            self.events.add_scalar(name, value, step)
        self.say(
            f"epoch {epoch}: loss {row['train/loss']:.4f}, train top-1"
            f" {100 * row['train/top1']:.2f}, test top-1 {row['test/top1']:.2f}"
        )

    def say(self, text: str) -> None:
        """One line for a person."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        if self.active:
            self.events.close()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a JSON-lines file up to the first that a killed process left unfinished."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            json.loads(line)
        except json.JSONDecodeError:
            break
        lines.append(line)
    return lines


class Progress:
    """A bar with ETA and images per second on a terminal; a plain line every minute elsewhere."""

    def __init__(self, log: Log, what: str, total: int, done: int, images_per_step: int):
        self.log, self.what, self.total, self.images = log, what, total, images_per_step
        self.done, self.first = done, None  # `first`: where the clock starts
        self.began = self.spoke = time.monotonic()
        terminal = log.active and sys.stdout.isatty()
        self.bar = tqdm(total=total, initial=done, desc=what, unit="step") if terminal else None

    @property
    def images_per_second(self) -> float:
        """Since the first steps were done: compilation is not in it, evaluation is."""
        if self.first is None:
            return 0.0
        elapsed = time.monotonic() - self.began
        return (self.done - self.first) * self.images / max(elapsed, 1e-9)

    def advance(self, step: int, loss: float) -> None:
        """`step` steps are done."""
        if self.first is None:
            self.first, self.began = step, time.monotonic()
        speed = self.images_per_second
        if self.bar is not None:
            self.bar.set_postfix_str(f"{speed:.0f} img/s, loss {loss:.3f}")
            self.bar.update(step - self.done)
        elif time.monotonic() - self.spoke > 60:
            self.spoke = time.monotonic()
            left = (self.total - step) * self.images / max(speed, 1e-9)
            self.log.say(
                f"{self.what}: step {step}/{self.total}, loss {loss:.3f}, {speed:.0f} img/s,"
                f" {left / 60:.0f} min left"
            )
        self.done = step

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
