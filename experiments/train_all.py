"""Every method really trains: one pair, one seed, one small budget, real CIFAR-10.

    python -m experiments.train_all --weights=resnet20-12fca82f.th --workdir=runs/train_all

The published ResNet-20 teaches a ResNet-8 for two epochs on the first 10,000 training images,
one-cycle, batch 64. This shows that losses go down and nothing diverges; two epochs rank nothing.
Warm-ups of 20 epochs (DKD, ReviewKD) are left out. Run again, it goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
from absl import logging

from atkd_jax import data
from atkd_jax.runtime.cache import enable_compilation_cache
from atkd_jax.training.loop import train_and_evaluate
from configs import cifar10, methods
from experiments import command
from experiments.measure import metrics
from experiments.schema import VALUE

IMAGES, TEACHER_TOP1 = 10_000, 91.73


def main() -> None:
    parser = command.Parser(__doc__)
    parser.add_argument(
        "--weights", type=command.file, required=True, help="akamaster's resnet20-12fca82f.th"
    )
    parser.add_argument("--workdir", type=command.writable, default=Path("runs/train_all"))
    parser.add_argument(
        "--methods", type=command.names("method", methods.METHODS), default=[*methods.METHODS]
    )
    parser.add_argument("--epochs", type=command.number(1, 10**6), default=2)
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    enable_compilation_cache()
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
        try:
            rows = metrics(workdir, config.epochs, dict.fromkeys(terms.values(), VALUE))
        except ValueError as error:
            sys.exit(f"error: {error}")
        losses = ", ".join(
            f"{term} {rows[0][key]:.4g} -> {rows[-1][key]:.4g}" for term, key in terms.items()
        )
        print(f"| {method} | {result['last']['top1']:.2f} | {losses} | {result['seconds']:.0f} |")


def write_subset(path: Path) -> Path:
    """The first training images of CIFAR-10 and all of its test set."""
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
    with command.in_words():
        main()
