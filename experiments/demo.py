"""The idea in two minutes on two CPU cores: a teacher, and three ways to train a student.

    python -m experiments.demo [--workdir=runs/demo] [--seeds=3]

On scikit-learn's handwritten digits, a ResNet-20 teaches a ResNet-8. Prints a table and writes a
picture. The same command resumes from what is there.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.runtime.preemption import stop_signal
from atkd_jax.training import attention_plot, from_config, teachers
from atkd_jax.training.loop import train_students
from configs import digits
from experiments import arguments

EPOCHS = 8
METHODS = {"none": "alone", "kd": "KD", "atkd": "AT-KD"}
PICTURED = (0, 1, 2, 3, 4, 5)  # one test image of each of these classes


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", type=arguments.writable, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=number(1, 1000), default=3)
    args = parser.parse_args()

    alone = teachers.teacher_config(digits.get_config("method=kd"))
    [teacher] = train({"teacher": alone}, args.workdir)
    results = {method: [] for method in METHODS}
    for seed in range(args.seeds):
        configs = {f"{m}-{seed}": digits.get_config(f"method={m}") for m in METHODS}
        for config in configs.values():
            config.seed = seed
            config.teacher.weights = str(args.workdir / "teacher" / "export")
        for method, result in zip(METHODS, train(configs, args.workdir), strict=True):
            results[method].append(result)

    print_table(teacher, results)
    draw(args.workdir)


def train(configs: dict[str, ConfigDict], workdir: Path) -> list[dict[str, Any]]:
    """Trains students together and prints a line for each; training itself prints to demo.log."""
    for config in configs.values():
        config.epochs = config.checkpoint.every_epochs = EPOCHS
    workdirs = [workdir / name for name in configs]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "demo.log").open("a") as file, contextlib.redirect_stdout(file):
        results = train_students([*configs.values()], workdirs)
    for path, result in zip(workdirs, results, strict=True):
        print(f"{path}: top-1 {result['last']['top1']:.2f}, {result['seconds']:.1f} s", flush=True)
    return results


def print_table(teacher: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> None:
    """One line per method: mean and standard deviation of the last epoch's top-1."""
    print(f"\n{'':16s}{'top-1 %':>14s}{'parameters':>12s}{'MACs':>12s}")
    rows = {"teacher": [teacher]}
    rows |= {f"student, {METHODS[method]}": own for method, own in results.items()}
    for name, summaries in rows.items():
        top1 = [summary["last"]["top1"] for summary in summaries]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        size = summaries[0]["student"]
        accuracy = f"{statistics.mean(top1):.2f}{spread}"
        print(f"{name:16s}{accuracy:>14s}{size['params']:>12,}{size['macs']:>12,}")


def draw(workdir: Path) -> None:
    """Draws attention maps of the teacher and all students (seed 0) on the same test images."""
    config = digits.get_config()
    source = from_config.source(config)
    rows = [list(source.test.label).index(k) for k in PICTURED]
    image = source.test.image[rows]
    networks = {}
    for title, model, folder in [
        ("teacher", config.teacher.model, "teacher"),
        *((f"student, {name}", config.student, f"{method}-0") for method, name in METHODS.items()),
    ]:
        network = from_config.network(config, model, source.info)
        like = teachers.abstract_variables(network, source.info)
        variables = load_export(workdir / folder / "export", like)
        networks[title] = attention_plot.attention(network, variables, image)
    names = [source.info.class_names[k] for k in PICTURED]
    attention_plot.plot(workdir / "attention.png", image, names, networks)
    print(f"\n{workdir / 'attention.png'}")


if __name__ == "__main__":
    with entry_point(), stop_signal():
        main()
