"""The model card: everything needed to use the exported files without the rest of the run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import atkd_jax
from atkd_jax.data import MemorySource, preparation
from atkd_jax.data.preparation import Preparation
from atkd_jax.errors import printable
from atkd_jax.export.measure import Row, table
from atkd_jax.export.trained import Student

CARD = """\
# {model}, trained on {data}

{num_classes} classes (`labels.txt`, in the order of the logits). Input: one image
[1, {height}, {width}, 3] uint8, 0..255, RGB; normalisation is inside. Output: logits
[1, {num_classes}] float32. {params:,} parameters, {macs:,} multiply-accumulates per image.

{from_a_file}

{table}

Measured on all {num_test:,} images of the test set, every file with its own runtime, on one thread
of: {cpu}. Time is the median; memory is what loading and running added to the process.
int8 took its ranges from {calibration} training images.

- Method: {method}
- Teacher: {teacher}
- Training: {epochs} epochs, seed {seed}; the configuration is in ../config.json
- Software: atkd_jax {version} (commit {commit}), {versions}
- Licence: the code is Apache-2.0; for the weights, the terms of the data apply as well

    python classify.py student_int8.tflite PICTURE...    # examples/device of atkd_jax
"""


def write(
    folder: Path, student: Student, top1: float, rows: list[Row], calibration: int, cpu: str
) -> None:
    """Writes README.md, labels.txt and preparation.json. top1: JAX's, in percent."""
    summary, info = student.summary, student.source.info
    height, width, _ = info.image_shape
    plan = preparation.describe(student.source)
    text = CARD.format(
        **student.meta | summary["student"],
        from_a_file=in_words(plan, isinstance(student.source, MemorySource)),
        height=height,
        width=width,
        table=table(top1, rows),
        num_test=info.num_test,
        cpu=cpu,
        calibration=calibration,
        method=method(summary["config"]),
        teacher=teacher(summary),
        epochs=summary["config"]["epochs"],
        seed=summary["config"]["seed"],
        version=atkd_jax.__version__,
        commit=commit(),
        versions=", ".join(f"{k} {v}" for k, v in summary["versions"].items() if k != "atkd-jax"),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    labels = "".join(f"{printable(name)}\n" for name in info.class_names)  # one line each
    (folder / "labels.txt").write_text(labels, encoding="utf-8")
    (folder / "preparation.json").write_text(json.dumps(plan, indent=2) + "\n")


def in_words(plan: Preparation, in_memory: bool) -> str:
    """How an image file becomes the input, as text. plan: of `preparation.describe`."""
    (cover_height, cover_width), (height, width) = plan["cover"], plan["crop"]
    text = (
        "An image file becomes the input as `preparation.json` says and `classify.py` does:\n"
        f"{plan['orientation']}; {plan['colours']}; resized ({plan['filter']}) to just\n"
        f"cover {cover_width}x{cover_height}; the centre of {width}x{height} cut out."
    )
    if in_memory:
        text += f" The images here were all {width}x{height}: none was resized."
    return text


def method(config: dict[str, Any]) -> str:
    """'0.1 cross-entropy + 0.9 kd (temperature 4.0)'."""
    terms = [f"{config['ce_weight']:g} cross-entropy"]
    for name, fields in config["terms"].items():
        others = ", ".join(f"{k} {v}" for k, v in fields.items() if k != "weight")
        terms.append(f"{fields['weight']:g} {name}" + (f" ({others})" if others else ""))
    return " + ".join(terms)


def teacher(summary: dict[str, Any]) -> str:
    if "teacher" not in summary:
        return "none"
    teacher = summary["teacher"]
    return f"{teacher['model']}, {teacher['params']:,} parameters, top-1 {teacher['top1']:.2f} %"


def commit() -> str:
    """The commit of this code, "-dirty" if modified since; "unknown" outside a repository."""
    here = Path(__file__).parent
    own = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        subprocess.run(own, check=True, capture_output=True)
        describe = ["git", "-C", str(here), "describe", "--always", "--dirty"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
