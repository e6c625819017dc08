"""From the poster's attention term to AT-KD's, one part after the other, on validation images.

    python -m experiments.studies.ablation --weights=FOLDER [--workdir=runs/ablation] [--seeds=3]

The published ResNet-20 (resnet20-12fca82f.th in FOLDER) teaches ResNet-8s on 5,000 of the first
45,000 training images of CIFAR-10 for 781 steps; the last 5,000 training images are the test set.
Prints a table and writes studies/ablation.json. The same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from atkd_jax import data
from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.runtime.preemption import stop_signal
from atkd_jax.training.loop import train_students
from configs import few_images, methods
from experiments import arguments
from experiments.queue.worker import published_teacher
from experiments.results.statistics import paired

HELD_OUT, IMAGES, STEPS = 5000, 5000, 781
POSTER = methods.POSTER | dict(warmup_steps=0)
FIXED = dict(balance=False, weight=100.0, warmup_steps=0)
# What differs from AT-KD's term; None: KD alone.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "KD": None,
    "the poster's map and error, weight 50": POSTER | dict(weight=50.0),
    "the same, weight 200": POSTER | dict(weight=200.0),
    "relative error, weight 100": FIXED | dict(center=False, scale=10.0),
    "relative error, scale 1": FIXED | dict(center=False),
    "relative error, centred": FIXED | dict(scale=10.0),
    "relative error, centred, scale 1": FIXED,
    "the same, balanced, weight 3": dict(warmup_steps=0),
    "AT-KD: the same, after a warm-up": {},
    "AT-KD, weight 1": dict(weight=1.0),
    "AT-KD, weight 10": dict(weight=10.0),
    "AT-KD, one head": dict(heads=1),
    "AT-KD, last stage only": dict(taps=("stage3",)),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--weights", type=arguments.folder, required=True)
    parser.add_argument("--workdir", type=arguments.writable, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=number(1, 100), default=3)
    parser.add_argument("--out", type=arguments.writable, default=Path(__file__).parents[1])
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    images = split(args.workdir / "validation.npz")
    top1: dict[str, dict[int, float]] = {name: {} for name in VARIANTS}
    for seed in range(args.seeds):
        configs = [config_of(name, seed, images, args.weights) for name in VARIANTS]
        folders = [args.workdir / f"{i}-{seed}" for i in range(len(VARIANTS))]
        with (args.workdir / "log").open("a") as log, contextlib.redirect_stdout(log):
            results = train_students(configs, folders)
        for name, result in zip(VARIANTS, results, strict=True):
            top1[name][seed] = result["last"]["top1"]
        print(f"seed {seed} is done", flush=True)
    print("\n| | top-1 | − KD |\n|---|---:|---:|")
    for name, found in top1.items():
        values = [*found.values()]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        gap = "" if name == "KD" else str(paired(found, top1["KD"]))
        print(f"| {name} | {statistics.mean(values):.2f}{spread} | {gap} |")
    path = args.out / "studies" / "ablation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: [*v.values()] for name, v in top1.items()}, indent=1) + "\n")
    print(f"\n{path}")


def split(path: Path) -> Path:
    """Writes the training images of CIFAR-10, the last ones as the test set, once."""
    if not path.exists():
        train = data.load("cifar10").train
        image, label = train.image, train.label
        np.savez(
            path,
            x_train=image[:-HELD_OUT],
            y_train=label[:-HELD_OUT],
            x_test=image[-HELD_OUT:],
            y_test=label[-HELD_OUT:],
        )
    return path


def config_of(name: str, seed: int, images: Path, weights: Path) -> ConfigDict:
    fields = VARIANTS[name]
    method = "kd" if fields is None else "atkd"
    config = few_images.get_config(f"method={method},images={IMAGES},steps={STEPS}")
    config.data.name, config.seed, config.data.subset.seed = f"npz:{images}", seed, seed
    if fields is not None:
        config.terms.self_attention.update(fields)
    config.teacher.weights = str(published_teacher("cifar10", config.teacher.model, weights))
    config.test_every_epochs = config.checkpoint.every_epochs = config.epochs
    return config


if __name__ == "__main__":
    with entry_point(), stop_signal():
        main()
