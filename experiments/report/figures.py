"""The figures of the report: from result lines, and attention maps from finished jobs.

`draw_*` functions return the path of the SVG or PNG file, or None if there is nothing to draw.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from atkd_jax import data
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.training import attention_plot, from_config, teachers
from experiments.queue import jobs
from experiments.results.schema import Line, tested_epochs
from experiments.results.statistics import Cell

COLOURS = matplotlib.colormaps["tab20"].colors
CURVE_METHODS = ("none", "kd", "rtk", "at_kd", "atkd")
MAP_METHODS = ("none", "kd", "atkd")
PICTURED = 6
CURVE_TESTS = 5  # fewer points are no curve
matplotlib.rcParams["svg.hashsalt"] = "atkd_jax"  # the same figure gives the same file


def save(figure: Figure, path: Path) -> Path:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    figure.savefig(draft, metadata={"Date": None} if path.suffix == ".svg" else None)
    os.replace(draft, path)
    return path


def draft_of(path: Path) -> Path:
    """Where a picture is written first: an older one is kept until the new one is complete."""
    return path.with_name(f".draft-{path.name}")


def literal(name: str) -> str:
    """A class name with escapes for what Matplotlib cannot draw, such as control characters."""
    return name if name.isprintable() else ascii(name)[1:-1]


def first_lines(cells: Sequence[Cell], methods: Sequence[str] = ()) -> list[tuple[str, Line]]:
    """(method, line of seed 0) of every filled cell; of these methods only, if given."""
    chosen = [cell for cell in cells if 0 in cell.lines]
    if methods:
        chosen = [cell for cell in chosen if cell.row.method in methods]
    return [(cell.row.method, cell.lines[0]) for cell in chosen]


def draw_curves(cells: Sequence[Cell], path: Path) -> Path | None:
    """Cross-entropy and accuracy on the test set over the epochs (RTK's Figure 3), seeds' means."""
    chosen = [cell for cell in cells if cell.row.method in CURVE_METHODS and cell.n]
    chosen = [c for c in chosen if len(tested_epochs(c.first_line["resolved"])) >= CURVE_TESTS]
    if not chosen:
        return None
    figure = Figure(figsize=(9, 3.4))
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("test/loss", "test/top1"),
        ("test cross-entropy", "test top-1, %"),
        strict=True,
    ):
        for i, cell in enumerate(chosen):
            rows = np.array([line["history"][key] for line in cell.lines.values()])
            epochs = tested_epochs(cell.first_line["resolved"])
            label = f"{cell.row.method} (n = {cell.n})"
            axes.plot(epochs, rows.mean(0), color=COLOURS[2 * i], label=label, marker=".")
            if cell.n > 1:
                axes.fill_between(
                    epochs, rows.min(0), rows.max(0), color=COLOURS[2 * i], alpha=0.15, lw=0
                )
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    return save(figure, path)


def draw_methods(cells: Sequence[Cell], path: Path) -> Path | None:
    """Mean, spread and single seeds of methods whose numbers are comparable, sorted."""
    chosen = sorted((c for c in cells if c.n), key=lambda cell: cell.mean)
    if len(chosen) < 3:
        return None
    figure = Figure(figsize=(8, 0.26 * len(chosen) + 0.9))
    axes = figure.subplots()
    for y, cell in enumerate(chosen):
        axes.plot(list(cell.values.values()), [y - 0.25] * cell.n, ".", color="0.5", ms=4)
        axes.errorbar(
            cell.mean, y, xerr=cell.sd or 0, fmt="o", ms=5, capsize=3,
            color="tab:red" if cell.row.method == "teacher" else "tab:blue",
        )  # fmt: skip
    marks = {c.row.method: c.mean for c in chosen if c.row.method in ("kd", "teacher")}
    taught = [
        c.lines[s]["teacher"]["top1"] for c in chosen for s in c.lines if c.lines[s]["teacher"]
    ]
    if taught and chosen[0].row.metric == "top1":
        marks["teacher"] = taught[0]
    for name, value in marks.items():
        colour = "tab:red" if name == "teacher" else "0.4"
        axes.axvline(value, color=colour, lw=1, ls="--", zorder=0)
        axes.annotate(name, (value, len(chosen) - 0.4), color=colour, fontsize=8, ha="center")
    names = [f"{cell.row.method} (n = {cell.n})" for cell in chosen]
    axes.set_yticks(range(len(chosen)), names, fontsize=8)
    metric = chosen[0].row.metric
    name = "top-1" if metric == "top1" else f"{metric} (see the table)"
    axes.set_xlabel(f"{name}, %: mean ± standard deviation; grey: single seeds")
    axes.grid(axis="x", alpha=0.3)
    return save(figure, path)


def draw_images(cells: Sequence[Cell], path: Path) -> Path | None:
    """Gain over KD on the same seeds by the number of training images; a panel per steps."""
    by_seed: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for cell in cells:
        key = cell.row.options["steps"], cell.row.method
        if cell.n:
            by_seed.setdefault(key, {})[cell.row.options["images"]] = dict(cell.values)
    steps = list(dict.fromkeys(key[0] for key in by_seed if (key[0], "kd") in by_seed))
    if not steps:
        return None
    figure = Figure(figsize=(4.2 * len(steps), 4))
    grid = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    methods = [m for m in dict.fromkeys(key[1] for key in by_seed) if m != "kd"]
    for axes, chosen in zip(grid, steps, strict=True):
        kd = by_seed[chosen, "kd"]
        for i, method in enumerate(methods):
            gaps = {
                int(images): [values[s] - kd[images][s] for s in values if s in kd[images]]
                for images, values in by_seed.get((chosen, method), {}).items()
                if images in kd
            }
            gaps = {images: found for images, found in sorted(gaps.items()) if found}
            x, y = list(gaps), [np.mean(found) for found in gaps.values()]
            style = dict(lw=2.5, zorder=3) if method == "atkd" else dict(lw=1.2)
            axes.plot(x, y, marker=".", color=COLOURS[2 * i], label=method, **style)
            low, high = [min(f) for f in gaps.values()], [max(f) for f in gaps.values()]
            axes.fill_between(x, low, high, color=COLOURS[2 * i], alpha=0.12, lw=0)
        axes.axhline(0, color="black", lw=1)
        axes.set_xscale("log")
        axes.set_title(f"{int(chosen):,} steps", fontsize=10)
        axes.set_xlabel("training images")
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("top-1 − KD's, points")
    grid[-1].legend(fontsize=8)
    return save(figure, path)


def draw_pairs(cells: Sequence[Cell], path: Path) -> Path | None:
    """Accuracy of teacher, student, KD and RTK over pairs of networks (RTK's Figure 4)."""
    names = list(dict.fromkeys(cell.row.pair for cell in cells if cell.n))
    if not names:
        return None
    figure = Figure(figsize=(9, 3.4))
    axes = figure.subplots()
    methods = list(dict.fromkeys(cell.row.method for cell in cells))
    for i, method in enumerate(methods):
        chosen = [cell for cell in cells if cell.row.method == method and cell.n]
        x = [names.index(cell.row.pair) + 0.8 * (i + 0.5) / len(methods) - 0.4 for cell in chosen]
        axes.bar(x, [cell.mean for cell in chosen], 0.75 / len(methods), label=method,
                 yerr=[cell.sd or 0 for cell in chosen])  # fmt: skip
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=20)
    low = min(cell.mean for cell in cells if cell.n)
    axes.set_ylim(bottom=max(0, low - 5))
    axes.set_ylabel("top-1, %")
    axes.legend(fontsize=8, ncols=4)
    return save(figure, path)


def draw_matrix(cells: Sequence[Cell], path: Path) -> Path | None:
    """Attention between student and teacher blocks in the last epoch (RTK's Figure 5)."""
    found = [(name, line) for name, line in first_lines(cells) if line["matrix"]]
    if not found:
        return None
    figure = Figure(figsize=(4.6 * len(found), 3.2))
    for axes, (name, line) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found, strict=True
    ):
        values = np.array(line["matrix"])
        shown = axes.imshow(values, cmap="viridis", aspect="auto", vmin=0)
        model = line["resolved"]["student"], line["resolved"]["teacher"]["model"]
        axes.set_title(f"{name}, seed 0", fontsize=10)
        axes.set_ylabel(f"student block ({model[0]})", fontsize=8)
        axes.set_xlabel(f"teacher block ({model[1]})", fontsize=8)
        for axis, size in ((axes.xaxis, values.shape[1]), (axes.yaxis, values.shape[0])):
            every = 1 if size < 12 else 3
            axis.set_ticks(range(0, size, every), range(1, size + 1, every), fontsize=7)
        figure.colorbar(shown, ax=axes, label="attention, mean of the last epoch")
    return save(figure, path)


def draw_roc(cells: Sequence[Cell], path: Path) -> Path | None:
    """ROC curves: micro average and five classes (RTK's Figure 6), of RTK or the first method."""
    found = [(n, line) for n, line in first_lines(cells) if line["roc"] and n != "teacher"]
    found = [pair for pair in found if pair[0] == "rtk"] or found[:1]
    if not found:
        return None
    name, line = found[0]
    figure = Figure(figsize=(9, 4))
    whole, near = figure.subplots(1, 2)
    for i, (key, curve) in enumerate(line["roc"]["curves"].items()):
        label = (
            "micro average" if key == "micro" else f"class {literal(line['class_names'][int(key)])}"
        )
        # Later curves are thinner, so that curves beneath them stay visible.
        style = dict(color="black" if key == "micro" else COLOURS[2 * i - 2], lw=5 - 0.8 * i)
        label = f"{label} (area {curve['area']:.4f})"
        for axes in (whole, near):
            axes.plot(line["roc"]["fpr"], curve["tpr"], label=label, **style)
    whole.plot([0, 1], [0, 1], color="0.8", lw=1)
    near.set_xscale("log")
    near.set_xlim(1e-4, 1)
    for text in whole.legend(fontsize=8, loc="lower right").get_texts():
        text.set_parse_math(False)  # a dollar sign in a class name is no formula
    for axes, title in ((whole, f"{name}, seed 0, probabilities"), (near, "the same, log scale")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.grid(alpha=0.3)
    return save(figure, path)


def draw_maps(
    cells: Sequence[Cell], path: Path, workdir: Path, weights: Path | None
) -> Path | None:
    """Attention maps of teacher and students (seed 0) on the same test images.

    Needs the finished jobs in `workdir` and published weights in `weights`; without them, an older
    picture is kept.
    """
    lines = dict(first_lines(cells, MAP_METHODS))
    exports = {m: workdir / line["hash"] / "export" for m, line in lines.items()}
    old = path if path.exists() else None
    if len(lines) < len(MAP_METHODS) or not all(p.exists() for p in exports.values()):
        return old
    job = jobs.resolve(lines["kd"]["config"], "student", lines["kd"]["protocol"])
    config = job.config
    if job.teacher:
        config.teacher.weights = str(workdir / job.teacher.hash / "export")
    else:
        config.teacher.weights = str((weights or Path()) / config.teacher.weights)
    if not Path(config.teacher.weights).exists():
        return old
    source = data.load(config.data.name)
    rows = [int(np.flatnonzero(source.test.label == k)[0]) for k in range(PICTURED)]
    image = source.test.image[rows]
    teacher = teachers.describe(config, source.info)
    variables = teachers.load(config, teacher, source.info, Path(config.teacher.weights))
    networks = {"teacher": attention_plot.attention(teacher, variables, image)}
    student = from_config.network(config, config.student, source.info)
    for name in MAP_METHODS:
        like = teachers.abstract_variables(student, source.info)
        networks[name] = attention_plot.attention(student, load_export(exports[name], like), image)
    names = [source.info.class_names[k] for k in range(PICTURED)]
    draft = draft_of(path)
    attention_plot.plot(draft, image, names, networks)
    os.replace(draft, path)
    return path


DRAW = {
    "curves": draw_curves,
    "images": draw_images,
    "methods": draw_methods,
    "pairs": draw_pairs,
    "matrix": draw_matrix,
    "roc": draw_roc,
}
