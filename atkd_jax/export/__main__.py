"""Exports the student of a finished run for small devices and measures every file again.

    python -m atkd_jax.export --workdir=DIR [--formats=tflite,tflite_int8] [--max_drop=1.0]

Writes WORKDIR/device/: the files, labels.txt, a model card (README.md) and report.json; prints one
table. If a file is wrong or loses more than --max_drop points of top-1, nothing is written and the
exit code is 1.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.errors import UserError
from atkd_jax.export import card, formats, measure, trained
from atkd_jax.ranges import INT32
from atkd_jax.runtime import json_file, replace, run_files
from atkd_jax.runtime.lock import lock

BESIDE = ("README.md", "labels.txt", "preparation.json", "report.json")  # next to the exports
FIRST = 32  # test images whose logits of a float32 file are compared with JAX's before the rest


def export(
    workdir: Path, names: list[str], calibration: int = 256, max_drop: float = 1.0
) -> list[measure.Row]:
    """Converts, checks and measures the student of a finished run; writes `workdir/device`.

    Args:
      names: keys of `FORMATS`.
      calibration: the largest number of training images from which int8 ranges are computed.
      max_drop: points of top-1 that a file may lose against JAX.

    Raises:
      UserError: the format is unknown, a package is missing, the run is not finished or in use by
        another process, a file loses too much or would overwrite one of the user's;
        `workdir/device` is unchanged.
      OSError: a file cannot be written; `workdir/device` is unchanged.
    """
    trained.read_summary(workdir)
    device = workdir / "device"
    with run_files.disk_errors(workdir), lock(workdir):
        replace.recover(device, exported)
        formats.check(names)
        replace.check(device, [*BESIDE, *(formats.FORMATS[name].file for name in names)], exported)
        student = trained.read(workdir)
        samples = trained.calibration_images(student.source, calibration)
        expected, label = trained.reference(student)
        top1 = check_top1(student, expected, label)
        with replace.replacing(device, exported) as draft:
            rows = []
            for name in names:
                rows.append(make(student, name, draft, samples, expected, label))
                print(f"{name}: {rows[-1].bytes:,} bytes, top-1 {rows[-1].top1:.2f}", flush=True)
            print(f"\n{measure.table(top1, rows)}\n")
            check_drop(rows, max_drop)
            card.write(draft, student, top1, rows, len(samples), cpu())
            report = {"top1": top1, "cpu": cpu(), "rows": [row._asdict() for row in rows]}
            (draft / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return rows


def exported(device: Path) -> list[str]:
    """Names of the entries of a folder that this command wrote, as its report.json lists them."""
    try:
        checks = {"rows": json_file.is_list_of(json_file.is_object)}
        report = json_file.read(device / "report.json", "a report", "", checks)
    except UserError:
        return []
    return [*BESIDE, *(row.get("file") for row in report["rows"])]


def make(
    student: trained.Student,
    name: str,
    folder: Path,
    samples: np.ndarray,
    expected: np.ndarray,
    label: np.ndarray,
) -> measure.Row:
    """Writes one file into `folder` and measures it.

    Args:
      samples: training images [N, H, W, 3] uint8, for int8 calibration.
      expected, label: JAX's logits [N, K] on the test set, and its labels [N].
    """
    form = formats.FORMATS[name]
    serve = trained.serving(student.network, student.variables)
    path = folder / form.file
    path.write_bytes(form.convert(serve, student.source.info.image_shape, samples))
    if form.exact:
        first = next(trained.test_images(student.source))[0][:FIRST]
        logits = measure.run(path, [first]).logits
        measure.check_numerics(name, logits, expected[: len(logits)])
    images = (image for image, _ in trained.test_images(student.source))
    return measure.row(name, path, measure.run(path, images), expected, label)


def check_top1(student: trained.Student, logits: np.ndarray, label: np.ndarray) -> float:
    """Returns JAX's top-1 in percent; raises UserError if it differs from the run's own."""
    top1 = 100 * float((logits.argmax(1) == label).mean())
    if abs(top1 - student.meta["top1"]) > max(0.5, 100 / len(label)):
        raise UserError(
            f"the student's top-1 is {top1:.2f}, its run said {student.meta['top1']:.2f}: the data"
            f" set {student.meta['data']} is not what it was"
        )
    return top1


def check_drop(rows: list[measure.Row], max_drop: float) -> None:
    """Raises UserError naming the files that lose too much."""
    bad = [f"{row.format} loses {row.drop:.2f}" for row in rows if row.drop > max_drop]
    if bad:
        raise UserError(
            f"{' and '.join(bad)} points of top-1, more than --max_drop={max_drop:g}; nothing was"
            " written. Raise --max_drop, or leave the format out"
        )


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="folder of a finished run")
    parser.add_argument(
        "--formats", default="tflite,tflite_int8", help=f"of {', '.join(formats.FORMATS)}"
    )
    images = number(1, INT32)
    parser.add_argument(
        "--calibration", type=images, default=256, help="training images for int8, at most"
    )
    points = number(0, 100, float)
    parser.add_argument("--max_drop", type=points, default=1.0, help="points of top-1")
    args = parser.parse_args()
    with entry_point("stopped; what was exported before is as it was"):
        workdir = Path(run_files.expand(args.workdir))
        export(workdir, args.formats.split(","), args.calibration, args.max_drop)
        print(workdir / "device")


if __name__ == "__main__":
    main()
