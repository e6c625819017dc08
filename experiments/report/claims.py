"""The claims of the project's slides, held against everything that was measured.

AT-KD is 2 to 5 points above KD; it generalises better to images unlike those trained on; and the
student stays small. The second and the third are judged by studies/corruptions.json and
studies/int8.json, where these exist.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results.schema import Line
from experiments.results.statistics import Cell, above_line, against_kd, paired
from experiments.studies.corruptions import corrupted
from experiments.studies.students import read

MIN_PAIRS = 3
Rows = Sequence[dict[str, Any]]  # of a study, one per student


def claims(
    cells: Sequence[Cell], results: Mapping[str, Line], studies: Path
) -> list[tuple[str, str]]:
    """(claim, what was found) for each."""
    return [
        ("2 to 5 points above KD", accuracy(cells, results)),
        (
            "Better on images unlike those trained on",
            generalisation(read(studies / "corruptions.json", results)),
        ),
        ("Small", size(read(studies / "int8.json", results))),
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
    sure = [(gap, cell) for gap, cell in gaps if gap.half is not None]
    better = [gap for gap, _ in sure if gap.verdict == "better"]
    worse = [gap for gap, _ in sure if gap.verdict == "worse"]
    ordered = sorted(sure or gaps, key=lambda pair: pair[0].mean)
    low, high = ordered[0], ordered[-1]
    return (
        f"Settings measured here: {len(gaps)}, of them {len(sure)} with several seeds. Of these,"
        f" AT-KD is reliably better than KD in {len(better)} and reliably worse in {len(worse)}"
        f" (95 % confidence); the largest of these gains is {high[0]} ({about(high[1])}), the"
        f" smallest {low[0]} ({about(low[1])})."
    )


def about(cell: Cell) -> str:
    """A cell in words."""
    line = cell.first_line
    data = line["resolved"]["data"]["name"]
    model = f"{line['resolved']['teacher']['model']} → {line['student']['model']}"
    return ", ".join(filter(None, (data, cell.row.setting, model, cell.protocol)))


def generalisation(rows: Rows) -> str:
    """Accuracy on corrupted images, as it is and at equal accuracy on clean ones."""
    ours, theirs = by_method(rows, "atkd"), by_method(rows, "kd")
    both = ours.keys() & theirs.keys()
    if len(both) < MIN_PAIRS:
        return (
            f"Measured on {len(both)} pairs of students, too few to tell"
            " (`python -m experiments.studies.corruptions`)."
        )
    as_it_is = paired(
        {key: corrupted(ours[key]) for key in both}, {key: corrupted(theirs[key]) for key in both}
    )
    beyond = above_line(points(ours), points(theirs))
    assert as_it_is is not None
    return (
        f"On corrupted test images AT-KD's students are {as_it_is} points above KD's"
        f" ({as_it_is.n} pairs). At equal accuracy on clean images the difference is {beyond}, by"
        f" the line through {len(theirs)} students of KD: {beyond.verdict}."
    )


def points(rows: Mapping[tuple, dict[str, Any]]) -> np.ndarray:
    """(accuracy on clean images, on corrupted ones) of every student."""
    return np.array([(row["top1"]["clean"], corrupted(row)) for row in rows.values()])


def by_method(rows: Rows, method: str) -> dict[tuple, dict[str, Any]]:
    """(images, steps, seed) -> row."""
    return {
        (row["images"], row["steps"], row["seed"]): row for row in rows if row["method"] == method
    }


def size(rows: Rows) -> str:
    """Bytes of the files for a device, and what int8 loses, of students that are in both."""
    ours, theirs = by_method(rows, "atkd"), by_method(rows, "kd")
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return "Not measured yet (`python -m experiments.studies.int8`)."
    large, small = (ours[both[0]]["bytes"][name] / 1024 for name in ("tflite", "tflite_int8"))
    lost = [
        statistics.mean(some[key]["drop"]["tflite_int8"] for key in both) for some in (ours, theirs)
    ]
    return (
        f"AT-KD adds nothing to a student: a ResNet-8 is a TFLite file of {large:.0f} KiB, of"
        f" {small:.0f} KiB in int8, which costs AT-KD's students {lost[0]:.2f} points of top-1 and"
        f" KD's {lost[1]:.2f} (means over {len(both)} pairs)."
    )
