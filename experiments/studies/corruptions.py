"""Does attention transfer help on images unlike those trained on? CIFAR-10 with corruptions.

    python -m experiments.studies.corruptions [--workdir=runs/tables]

Takes the students of `--table=few_images` that queue.launch left in WORKDIR, and tests each on the
first 2,000 test images under six corruptions at five strengths, after Hendrycks & Dietterich 2019
(arXiv 1903.12261); strengths are those of CIFAR-10-C (github hendrycks/robustness,
make_cifar_c.py). Writes studies/corruptions.json and figures/study-corruptions.svg. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from atkd_jax import data
from atkd_jax.command_line import Parser, entry_point
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.training import from_config, teachers
from experiments import arguments
from experiments.queue import jobs
from experiments.report.figures import COLOURS, save
from experiments.results import store
from experiments.studies.students import about, finished, read, write
from experiments.tables.rows import FEW_METHODS

HERE = Path(__file__).parent
TESTED = 2000
STRENGTHS: dict[str, tuple[float, ...]] = {
    "gaussian noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "gaussian blur": (0.4, 0.6, 0.7, 0.8, 1),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "jpeg": (80, 65, 58, 50, 40),
    "pixelation": (0.95, 0.9, 0.85, 0.75, 0.65),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", type=arguments.folder, default=Path("runs/tables"))
    parser.add_argument("--results", type=arguments.folder, default=store.RESULTS)
    parser.add_argument("--out", type=arguments.writable, default=HERE.parent)
    args = parser.parse_args()
    source = data.load("cifar10")
    image, label = source.test.image[:TESTED], source.test.label[:TESTED]
    sets = {"clean": image} | {
        f"{kind} {i + 1}": corrupt(kind, strength, image)
        for kind, strengths in STRENGTHS.items()
        for i, strength in enumerate(strengths)
    }
    path = args.out / "studies" / "corruptions.json"
    lines = store.read(args.results)[0]
    rows = read(path, lines)
    known = {row["hash"] for row in rows}
    for line, folder in finished(args.workdir, lines):
        if line["hash"] not in known:
            row = about(line) | {"top1": top1(line, folder / "export", source.info, sets, label)}
            rows.append(row)
            write(path, rows)
            print(f"{row['method']}, {row['images']} images, {row['steps']} steps: {means(row)}")
    print(f"{path}, {draw(rows, args.out / 'figures' / 'study-corruptions.svg')}")


def corrupt(kind: str, strength: float, image: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] uint8 -> the same, corrupted; noise is drawn with seed 0."""
    if kind in ("jpeg", "pixelation"):
        change = as_jpeg if kind == "jpeg" else pixelate
        return np.stack([change(one, strength) for one in image])
    x = image / 255.0
    if kind == "gaussian noise":
        x = x + np.random.RandomState(0).normal(scale=strength, size=x.shape)
    elif kind == "gaussian blur":
        x = gaussian_filter(x, (0, strength, strength, 0), mode="nearest")
    elif kind == "contrast":
        mean = x.mean(axis=(1, 2), keepdims=True)
        x = (x - mean) * strength + mean
    else:
        # The value of HSV, which is the largest channel, grows; hue and saturation stay.
        value = x.max(axis=-1, keepdims=True)
        bright = np.minimum(value + strength, 1)
        x = np.where(value > 0, x * bright / np.maximum(value, 1e-9), bright)
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def pixelate(image: np.ndarray, share: float) -> np.ndarray:
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.BOX)
    return np.asarray(small.resize((width, height), Image.BOX))


def top1(line, folder: Path, info, sets: dict[str, np.ndarray], label: np.ndarray) -> dict:
    """Accuracy in percent of an exported student on every set of images."""
    config = jobs.resolve(line["config"], seed=line["seed"]).config
    network = from_config.network(config, config.student, info)
    variables = load_export(folder, teachers.abstract_variables(network, info))
    predict: Callable = jax.jit(
        lambda x: jnp.argmax(network.infer(variables, x.astype(jnp.float32) / 255).logits, -1)
    )
    return {
        name: round(100 * float(np.mean(np.asarray(predict(image)) == label)), 2)
        for name, image in sets.items()
    }


def means(row: dict[str, Any]) -> str:
    return f"clean {row['top1']['clean']:.2f}, corrupted {corrupted(row):.2f}"


def corrupted(row: dict[str, Any]) -> float:
    """Mean over all corruptions and strengths."""
    return float(np.mean([value for name, value in row["top1"].items() if name != "clean"]))


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Accuracy on corrupted images over that on clean ones, a point per student."""
    figure = Figure(figsize=(6, 4.2))
    axes = figure.subplots()
    for i, method in enumerate(FEW_METHODS):
        own = [row for row in rows if row["method"] == method]
        if own:
            x, y = [row["top1"]["clean"] for row in own], [corrupted(row) for row in own]
            axes.plot(x, y, "o", ms=4, color=COLOURS[2 * i % 20], label=method)
    axes.set_xlabel("top-1 on clean test images, %")
    axes.set_ylabel("top-1 on corrupted ones, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return save(figure, path)


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
