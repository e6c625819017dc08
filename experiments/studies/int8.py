"""Does a student that was taught attention survive int8? Size and accuracy of TFLite files.

    python -m experiments.studies.int8 [--workdir=runs/tables] [--methods=none,kd,atkd]

Takes the students of `--table=few_images` that queue.launch left in WORKDIR, exports each as a
float32 and an int8 TFLite file (`python -m atkd_jax.export`), and measures both on all test images.
Needs TensorFlow. Writes studies/int8.json. The same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import io
import statistics
from pathlib import Path
from typing import Any

from atkd_jax.command_line import Parser, entry_point
from atkd_jax.export.__main__ import export
from atkd_jax.runtime.preemption import stop_signal
from experiments import arguments
from experiments.results import store
from experiments.studies.students import about, finished, read, write
from experiments.tables.rows import FEW_METHODS

FORMATS = ("tflite", "tflite_int8")
CALIBRATION = 256  # training images


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", type=arguments.folder, default=Path("runs/tables"))
    parser.add_argument("--results", type=arguments.folder, default=store.RESULTS)
    methods = arguments.names("method", FEW_METHODS)
    parser.add_argument("--methods", type=methods, default=["none", "kd", "at_kd", "atkd"])
    parser.add_argument("--out", type=arguments.writable, default=Path(__file__).parents[1])
    args = parser.parse_args()
    path = args.out / "studies" / "int8.json"
    lines = store.read(args.results)[0]
    rows = read(path, lines)
    known = {row["hash"] for row in rows}
    for line, folder in finished(args.workdir, lines):
        student = about(line)
        if line["hash"] not in known and student["method"] in args.methods:
            rows.append(student | measure(folder))
            write(path, rows)
    for method in args.methods:
        if own := [row for row in rows if row["method"] == method]:
            print(text_of(method, own))
    print(path)


def measure(folder: Path) -> dict[str, Any]:
    """Bytes and points of top-1 lost, for both formats."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = {row.format: row for row in export(folder, list(FORMATS), CALIBRATION, 100.0)}
    return {
        "bytes": {name: row.bytes for name, row in found.items()},
        "top1": {name: round(row.top1, 2) for name, row in found.items()},
        "drop": {name: round(row.drop, 2) for name, row in found.items()},
    }


def text_of(method: str, rows: list[dict[str, Any]]) -> str:
    drops = [row["drop"]["tflite_int8"] for row in rows]
    size, small = (rows[0]["bytes"][name] / 1024 for name in FORMATS)
    return (
        f"{method}: {size:.0f} KiB, int8 {small:.0f} KiB; int8 loses {statistics.mean(drops):.2f}"
        f" points of top-1 on average, {max(drops):.2f} at most (n = {len(drops)})"
    )


if __name__ == "__main__":
    with entry_point(), stop_signal():
        main()
