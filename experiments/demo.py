"""Few labelled images: what a teacher and its attention are worth, in minutes on two CPU cores.

    python -m experiments.demo [--seeds=5] [--workdir=runs/demo]
    python -m experiments.demo --data=cifar10 --weights=FOLDER [--seeds=3]

A ResNet-20 that learned from all 1,437 of scikit-learn's handwritten digits teaches ResNet-8s that
have 50 of them, other ones for every seed. With `--data=cifar10` (a folder with akamaster's
resnet20-12fca82f.th, and CIFAR-10 prepared as README.md says) they have 5,000 photographs. Prints a
table and a conclusion, and draws two pictures. The same command resumes from what is there.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.runtime.preemption import stop_signal
from atkd_jax.training import attention_plot, from_config, teachers
from atkd_jax.training.loop import train_students
from configs import digits, few_images
from experiments import arguments
from experiments.queue.worker import published_teacher
from experiments.report.figures import save
from experiments.results.statistics import paired

METHODS = {"none": "alone", "kd": "KD", "atkd": "AT-KD"}
COMPARED = (("kd", "none", "no teacher"), ("atkd", "kd", "KD"))
DIGITS, EPOCHS, BATCH = 50, 80, 10  # of the students: 400 steps
SEEDS = {"digits": 5, "cifar10": 3}
PICTURED = 5  # classes, one test image of each
Results = dict[str, list[dict[str, Any]]]  # method -> summaries by seed


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--data", choices=tuple(SEEDS), default="digits")
    parser.add_argument("--weights", type=arguments.folder, help="folder of published weights")
    parser.add_argument("--workdir", type=arguments.writable, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=number(1, 1000), help="5, of cifar10 3")
    args = parser.parse_args()
    seeds = args.seeds or SEEDS[args.data]
    workdir = args.workdir if args.data == "digits" else args.workdir / args.data

    teacher = teacher_weights(args.data, args.weights, workdir)
    results: Results = {method: [] for method in METHODS}
    for seed in range(seeds):
        configs = [student_config(args.data, method, seed, teacher) for method in METHODS]
        folders = [workdir / f"{method}-{seed}" for method in METHODS]
        for method, result in zip(METHODS, train(configs, folders, workdir), strict=True):
            results[method].append(result)
    print_table(results)
    print(f"\n{conclusion(results)}\n")
    print(draw_bars(results, workdir / "top1.png"))
    print(draw_maps(args.data, teacher, workdir))


def student_config(data: str, method: str, seed: int, teacher: Path) -> ConfigDict:
    if data == "digits":
        config = digits.get_config(f"method={method}")
        config.data.subset.images, config.batch_size = DIGITS, BATCH
        config.epochs = EPOCHS
        config.schedule.warmup_epochs = EPOCHS / 4
        config.test_every_epochs = config.checkpoint.every_epochs = EPOCHS
    else:
        config = few_images.get_config(f"method={method},images=5000,steps=781")
    config.seed = config.data.subset.seed = seed
    config.teacher.weights = str(teacher)
    return config


def teacher_weights(data: str, weights: Path | None, workdir: Path) -> Path:
    """A teacher of digits is trained first."""
    if data == "digits":
        config = teachers.teacher_config(digits.get_config("method=kd"))
        config.epochs = config.checkpoint.every_epochs = config.test_every_epochs = 6
        config.schedule.warmup_epochs = 1.5
        train([config], [workdir / "teacher"], workdir)
        return workdir / "teacher" / "export"
    return published_teacher(data, few_images.get_config().teacher.model, weights)


def train(
    configs: Sequence[ConfigDict], folders: Sequence[Path], workdir: Path
) -> list[dict[str, Any]]:
    """Trains students together and prints a line for each; training itself prints to demo.log."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "demo.log").open("a") as file, contextlib.redirect_stdout(file):
        results = train_students(configs, folders)
    for folder, result in zip(folders, results, strict=True):
        print(f"{folder}: top-1 {result['last']['top1']:.2f}, {result['seconds']:.1f} s")
    sys.stdout.flush()
    return results


def top1(results: Results) -> dict[str, dict[int, float]]:
    """Of the last epoch: method -> seed -> percent."""
    return {
        method: {seed: one["last"]["top1"] for seed, one in enumerate(own)}
        for method, own in results.items()
    }


def print_table(results: Results) -> None:
    """A line per network: mean and standard deviation over the seeds of top-1, and the size."""
    first = results["kd"][0]
    rows = [("teacher", [first["teacher"]["top1"]], first["teacher"])]
    for method, numbers in top1(results).items():
        rows.append((f"student, {METHODS[method]}", [*numbers.values()], first["student"]))
    print(f"\n{'':16s}{'top-1 %':>14s}{'parameters':>12s}{'MACs':>12s}")
    for name, numbers, size in rows:
        spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
        accuracy = f"{statistics.mean(numbers):.2f}{spread}"
        print(f"{name:16s}{accuracy:>14s}{size['params']:>12,}{size['macs']:>12,}")


def conclusion(results: Results) -> str:
    """What the seeds say about the differences, in one sentence."""
    found = top1(results)
    parts = []
    for better, worse, name in COMPARED:
        gap = paired(found[better], found[worse])
        assert gap is not None  # all methods have the same seeds
        parts.append(f"{METHODS[better]} {gap} points over {name}: {gap.verdict}")
    return "; ".join(parts) + "."


def draw_bars(results: Results, path: Path) -> Path:
    """Mean top-1 of the students, their seeds as points, and the teacher as a line."""
    figure = Figure(figsize=(5, 3.2))
    axes = figure.subplots()
    for i, numbers in enumerate(top1(results).values()):
        values = [*numbers.values()]
        mean = statistics.mean(values)
        bar = axes.bar(i, mean, 0.6, color=("0.7", "tab:blue", "tab:orange")[i])
        axes.plot([i] * len(values), values, "o", color="black", ms=3)
        axes.bar_label(bar, [f"{mean:.1f}"], label_type="center", fontsize=10)
    every = [value for numbers in top1(results).values() for value in numbers.values()]
    teacher = results["kd"][0]["teacher"]["top1"]
    axes.axhline(teacher, color="tab:red", lw=1)
    axes.annotate(f"teacher {teacher:.1f}", (-0.4, teacher), va="bottom", color="tab:red")
    low, high = min(every), max(every + [teacher])
    axes.set_ylim(max(0, low - (high - low) - 1), high + 0.15 * (high - low) + 0.5)
    axes.set_xticks(range(len(METHODS)), [f"student, {name}" for name in METHODS.values()])
    axes.set_ylabel("test top-1, %")
    seeds = len(results["kd"])
    axes.set_title(f"points: {seeds} seeds" if seeds > 1 else "one seed", fontsize=10)
    return save(figure, path)


def draw_maps(data: str, teacher: Path, workdir: Path) -> Path:
    """Attention of the teacher and of the students (seed 0) at 8x8, on the same test images."""
    config = student_config(data, "kd", 0, teacher)
    source = from_config.source(config)
    rows = [list(source.test.label).index(k) for k in range(PICTURED)]
    image = source.test.image[rows]
    network = teachers.describe(config, source.info)
    variables = teachers.load(config, network, source.info, teacher)
    maps = {"teacher": attention_plot.attention(network, variables, image)}
    student = from_config.network(config, config.student, source.info)
    like = teachers.abstract_variables(student, source.info)
    for method, name in METHODS.items():
        variables = load_export(workdir / f"{method}-0" / "export", like)
        maps[f"student, {name}"] = attention_plot.attention(student, variables, image)
    names = [source.info.class_names[k] for k in range(PICTURED)]
    path = workdir / "attention.png"
    only = {title: {"8x8": sizes["8x8"]} for title, sizes in maps.items()}
    attention_plot.plot(path, image, names, only)
    return path


if __name__ == "__main__":
    with entry_point(), stop_signal():
        main()
