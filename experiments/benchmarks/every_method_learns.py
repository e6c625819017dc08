"""Checks that every method learns: one pair, one seed, a small budget, real CIFAR-10.

    python -m experiments.benchmarks.every_method_learns --weights=resnet20-12fca82f.th \
      --workdir=runs/every_method_learns

The published ResNet-20 teaches a ResNet-8 for two epochs on the first 10,000 training images,
one-cycle, batch 64. It shows that losses fall and nothing diverges; two epochs rank nothing.
Warm-ups of 20 epochs (DKD, ReviewKD) are left out. The same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import numpy as np

from atkd_jax import data
from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.runtime.preemption import stop_signal
from atkd_jax.training.loop import train_and_evaluate
from configs import cifar10, methods
from experiments import arguments
from experiments.results.measure import metrics
from experiments.results.schema import VALUE, tested_epochs

IMAGES, TEACHER_TOP1 = 10_000, 91.73


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--weights", type=weights_file, required=True, help="akamaster's resnet20-12fca82f.th"
    )
    parser.add_argument(
        "--workdir", type=arguments.writable, default=Path("runs/every_method_learns")
    )
    parser.add_argument(
        "--methods", type=arguments.names("method", methods.METHODS), default=[*methods.METHODS]
    )
    parser.add_argument("--epochs", type=number(1, 10**6), default=2)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    subset = write_subset(args.workdir / "cifar10.npz")
    print("| method | top-1 | loss terms, first epoch -> last | seconds |")
    print("|---|---|---|---|")
    for method in args.methods:
        config = cifar10.get_config(f"method={method},pair=r20_r8,teacher=akamaster")
        config.data.name = f"npz:{subset}"
        config.teacher.weights, config.teacher.expect_top1 = str(args.weights), TEACHER_TOP1
        config.epochs = args.epochs
        config.schedule.update(name="onecycle", warmup_epochs=0.5)
        for term in config.terms.values():
            if "warmup_epochs" in term:
                term.warmup_epochs = 0.0
        workdir = args.workdir / method
        with workdir.with_suffix(".log").open("a") as file, contextlib.redirect_stdout(file):
            result = train_and_evaluate(config, workdir)
        terms = {term: f"train/{term}" for term in ("ce", *config.terms)}
        rows = metrics(workdir, tested_epochs(config), dict.fromkeys(terms.values(), VALUE))
        losses = ", ".join(
            f"{term} {rows[0][key]:.4g} -> {rows[-1][key]:.4g}" for term, key in terms.items()
        )
        print(f"| {method} | {result['last']['top1']:.2f} | {losses} | {result['seconds']:.0f} |")


def weights_file(text: str) -> Path:
    """An existing file; `~` is the user's."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is no file")
    return path


def write_subset(path: Path) -> Path:
    """Writes the first training images of CIFAR-10 and all of its test set, once."""
    if not path.exists():
        source = data.load("cifar10")
        train, test = source.train, source.test
        np.savez(
            path,
            x_train=train.image[:IMAGES],
            y_train=train.label[:IMAGES],
            x_test=test.image,
            y_test=test.label,
        )
    return path


if __name__ == "__main__":
    with entry_point(), stop_signal():
        main()
