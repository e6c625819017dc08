"""The whole idea in three minutes on two CPU cores: a teacher, and three ways for a student.

    python -m experiments.demo [--workdir=runs/demo] [--seeds=3]

On scikit-learn's handwritten digits, a ResNet-20 teaches a ResNet-8. Prints one table and writes
one picture. Run again, it goes on from what is there.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from atkd_jax.runtime.cache import enable_compilation_cache
from atkd_jax.runtime.checkpoint import load_export
from atkd_jax.training import attention_plot, from_config, teachers
from atkd_jax.training.loop import train_and_evaluate
from configs import digits
from experiments import command

METHODS = {"none": "alone", "kd": "KD", "atkd": "AT-KD"}
PICTURED = (0, 1, 2, 3, 4, 5)  # one test image of each of these classes


def main() -> None:
    parser = command.Parser(__doc__)
    parser.add_argument("--workdir", type=command.writable, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=command.number(1, 1000), default=3)
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    enable_compilation_cache()

    master = run(teachers.teacher_config(digits.get_config("method=kd")), args.workdir / "teacher")
    results = {}
    for method in METHODS:
        for seed in range(args.seeds):
            config = digits.get_config(f"method={method}")
            config.seed = seed
            config.teacher.weights = str(args.workdir / "teacher" / "export")
            result = run(config, args.workdir / f"{method}-{seed}")
            results.setdefault(method, []).append(result)

    print_table(master, results)
    draw(args.workdir, master)


def run(config: ConfigDict, workdir: Path) -> dict:
    """One training, told in one line; its own lines go to WORKDIR.log."""
    config.checkpoint.every_epochs = config.epochs
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("a") as file, contextlib.redirect_stdout(file):
        result = train_and_evaluate(config, workdir)
    print(f"{workdir}: top-1 {result['last']['top1']:.2f}, {result['seconds']:.1f} s", flush=True)
    return result


def print_table(master: dict, results: dict[str, list[dict]]) -> None:
    """One line per way to learn: mean and standard deviation of the last epoch's top-1."""
    print(f"\n{'':16s}{'top-1 %':>14s}{'parameters':>12s}{'MACs':>12s}{'s / run':>9s}")
    rows = {"teacher": [master]} | {f"student, {METHODS[m]}": runs for m, runs in results.items()}
    for name, runs in rows.items():
        top1 = [run["last"]["top1"] for run in runs]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        size = runs[0]["student"]
        seconds = statistics.mean(run["seconds"] for run in runs)
        accuracy = f"{statistics.mean(top1):.2f}{spread}"
        print(f"{name:16s}{accuracy:>14s}{size['params']:>12,}{size['macs']:>12,}{seconds:>9.1f}")


def draw(workdir: Path, master: dict) -> None:
    """Attention maps of the teacher and of every student (seed 0) on the same test images."""
    config = digits.get_config()
    source = from_config.source(config)
    rows = [list(source.test.label).index(k) for k in PICTURED]
    image = source.test.image[rows]
    networks = {}
    for title, model, run in [
        ("teacher", config.teacher.model, "teacher"),
        *((f"student, {name}", config.student, f"{method}-0") for method, name in METHODS.items()),
    ]:
        network = from_config.network(config, model, source.info)
        like = teachers.variables_like(network, source.info)
        variables = load_export(workdir / run / "export", like)
        networks[title] = attention_plot.attention(network, variables, image)
    names = [source.info.class_names[k] for k in PICTURED]
    attention_plot.write_attention(workdir / "attention.png", image, names, networks)
    print(f"\n{workdir / 'attention.png'}")


if __name__ == "__main__":
    with command.in_words():
        main()
