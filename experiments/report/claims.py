"""The claims of the project's slides, held against everything that was measured.

AT-KD is 2 to 5 points above KD; it generalises better to images unlike those trained on; and the
student stays small. The second and the third are judged by studies/corruptions.json and
studies/int8.json, where these exist.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from experiments.results.schema import Line
from experiments.results.statistics import Cell, Paired, against_kd, paired
from experiments.studies.corruptions import corrupted, residuals
from experiments.studies.students import read

Rows = Sequence[dict[str, Any]]  # of a study, one per student


def claims(
    cells: Sequence[Cell], results: Mapping[str, Line], studies: Path
) -> list[tuple[str, str]]:
    """(claim, what was found) for each."""
    return [
        ("2 to 5 points above KD", accuracy(cells, results)),
        (
            "Better on images unlike those trained on",
            generalisation(read(studies / "corruptions.json")),
        ),
        ("Small", size(read(studies / "int8.json"))),
    ]


def accuracy(cells: Sequence[Cell], results: Mapping[str, Line]) -> str:
    """AT-KD against KD in every setting that was measured."""
    gaps = [
        (gap, cell)
        for cell in cells
        if cell.row.method == "atkd" and cell.row.metric == "top1"
        if (gap := against_kd(cell, results))
    ]
    if not gaps:
        return "AT-KD has not been compared with KD yet."
    sure = [(gap, gap.half) for gap, _ in gaps if gap.half is not None]
    better = [gap for gap, half in sure if gap.mean > half]
    worse = [gap for gap, half in sure if gap.mean < -half]
    ordered = sorted(gaps, key=lambda pair: pair[0].mean)
    return (
        f"Of {len(gaps)} settings measured here, {len(sure)} of them with several seeds, AT-KD is"
        f" reliably better than KD in {len(better)} and reliably worse in {len(worse)} (95 %"
        f" confidence). The largest gain is {ordered[-1][0]} ({about(ordered[-1][1])}), the"
        f" smallest {ordered[0][0]} ({about(ordered[0][1])})."
    )


def about(cell: Cell) -> str:
    """A cell in words."""
    line = cell.first_line
    model = f"{line['resolved']['teacher']['model']} → {line['student']['model']}"
    return ", ".join(filter(None, (cell.row.dataset, cell.row.setting, model, cell.protocol)))


def generalisation(rows: Rows) -> str:
    """Accuracy on corrupted images, as it is and beyond what accuracy on clean ones predicts."""
    more = gap(rows, [corrupted(row) for row in rows])
    if more is None:
        return "Not measured yet (`python -m experiments.studies.corruptions`)."
    most = cast(Paired, gap(rows, residuals(rows)))
    if most.half is None or abs(most.mean) <= most.half:
        verdict = "so that it generalises as its accuracy lets expect, no better"
    else:
        verdict = "so that it generalises " + ("better" if most.mean > 0 else "worse")
    return (
        f"On corrupted test images AT-KD's students are {more} points above KD's ({more.n} pairs of"
        f" students), but {most} beyond what their accuracy on clean images predicts, {verdict}."
    )


def gap(rows: Rows, numbers: Sequence[float]) -> Paired | None:
    """AT-KD - KD over the students that differ in nothing else; None if there are none."""
    found: dict[str, dict[tuple, float]] = {"atkd": {}, "kd": {}}
    for row, number in zip(rows, numbers, strict=True):
        key = row["images"], row["steps"], row["seed"]
        found.setdefault(row["method"], {})[key] = number
    return paired(found["atkd"], found["kd"])


def size(rows: Rows) -> str:
    """Bytes of the files for a device, and what int8 loses."""
    own, other = ([row for row in rows if row["method"] == m] for m in ("atkd", "kd"))
    if not own or not other:
        return "Not measured yet (`python -m experiments.studies.int8`)."
    large, small = (own[0]["bytes"][name] / 1024 for name in ("tflite", "tflite_int8"))
    ours, theirs = (
        statistics.mean(row["drop"]["tflite_int8"] for row in some) for some in (own, other)
    )
    return (
        f"AT-KD adds nothing to a student: a ResNet-8 is a TFLite file of {large:.0f} KiB, of"
        f" {small:.0f} KiB in int8, which costs AT-KD's students {ours:.2f} points of top-1 and"
        f" KD's {theirs:.2f} (means over {len(own)} and {len(other)})."
    )
