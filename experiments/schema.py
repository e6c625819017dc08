"""What a result line is: every field, its type and its range, and what has to agree within it.

A line comes from a run that was here once, from a file that a person may have edited, or from a
disk that was full. It is a result only if all of it is whole: readers index it without a look.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import roc, runs

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values that a field may have: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def number(low: float, high: float, types: Any = int | float) -> Kind:
    """Numbers within a range; NaN is in none, and a boolean is no number."""

    def fits(x: Any) -> bool:
        return isinstance(x, types) and not isinstance(x, bool) and low <= x <= high

    return Kind(f"a {'whole ' if types is int else ''}number from {low:g} to {high:g}", fits)


def one_of(*known: str) -> Kind:
    return Kind(f"one of {', '.join(known)}", lambda x: x in known)


def text(least: int) -> Kind:
    def fits(x: Any) -> bool:
        return isinstance(x, str) and x.isprintable() and least <= len(x) <= 1000

    return Kind("a line of text", fits)


LARGEST = float(np.finfo(np.float32).max)  # training computes in float32
COUNT, PERCENT, PART = number(1, 2**63, int), number(0, 100), number(0, 1)
LOSS, VALUE = number(0, LARGEST), number(-LARGEST, LARGEST)  # VID's and CRD's may be negative
RATE = number(0, 1e12)  # and times: they are rounded, even to 0
NAME, WORDS, ANY = text(1), text(0), Kind("text", lambda x: isinstance(x, str))
NULL, EMPTY = Kind("null", lambda x: x is None), Kind("empty", lambda x: x == {})
CURVES = {"train/loss": [VALUE], "test/loss": [LOSS], "test/top1": [PERCENT]}

# A dict has these keys (others are nobody's business; `...` stands for every key), a list has any
# number of such items, a tuple names alternatives.
ROW = {"epoch": COUNT, "top1": PERCENT, "top5": PERCENT, "loss": LOSS}
NETWORK = {"model": NAME, "params": COUNT, "macs": COUNT, "hash": NAME}
LINE = {
    "hash": NAME,
    "config": NAME,
    "role": one_of(*runs.ROLES),
    "protocol": one_of(*runs.PROTOCOLS),
    "seed": number(0, 2**31 - 1, int),
    "last": ROW,
    "best": ROW,
    "areas": {"hard": PART, "macro": PART, "micro": PART},
    "unseen": (NULL, PERCENT),
    "teacher": (NULL, NETWORK | {"top1": PERCENT}),
    "student": NETWORK,
    "seconds": RATE,
    "images_per_second": RATE,
    "company": COUNT,
    # os.cpu_count() may not know.
    "hardware": {"device": NAME, "devices": COUNT, "processes": COUNT, "cpus": (NULL, COUNT)},
    "versions": {...: NAME},
    "commit": WORDS,
    "history": CURVES,
    "roc": (EMPTY, {"fpr": [PART], "curves": {...: {"tpr": [PART], "area": PART}}}),
    "matrix": [[VALUE]],
    "class_names": [ANY],
    "resolved": {
        "epochs": COUNT,
        "seed": number(0, 2**31 - 1, int),
        "student": NAME,
        "teacher": {"model": WORDS, "weights": WORDS, "expect_top1": PERCENT},
        "terms": {...: {}},
    },
}


def fault(value: Any, shape: Any, where: str = "") -> str:
    """The first thing in which a value is not of a shape, in words; empty if it is."""
    match shape:
        case Kind():
            if shape.fits(value):
                return ""
            return f"its {where} is {shorten(value)}, not {shape.words}"
        case tuple():
            faults = [fault(value, one, where) for one in shape]
            return "" if "" in faults else faults[-1]
        case list():
            if not isinstance(value, list):
                return f"its {where} is {shorten(value)}, not a list"
            parts = [(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value)]
        case dict():
            if not isinstance(value, dict):
                if not where:
                    return "it is not a JSON object"
                return f"its {where} is {shorten(value)}, not an object"
            inner = f"{where}." if where else ""
            if missing := [f"{inner}{key}" for key in shape if key is not ... and key not in value]:
                return f"it has no {', '.join(missing)}"
            keys = value if ... in shape else shape
            parts = [(value[key], shape.get(..., shape.get(key)), f"{inner}{key}") for key in keys]
    return next(filter(None, (fault(*part) for part in parts)), "")


def shorten(value: Any) -> str:
    """A value for a message; a long one by its type alone."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) >= 10**20:  # Python prints no more than 4300 digits
        return "a huge number"
    told = "null" if value is None else repr(value)
    return told if len(told) < 50 else f"{told[:46]}..."


def contradiction(line: Line) -> str:
    """What the parts of a line, each right by itself, say differently; empty if they agree."""
    resolved, history, epochs = line["resolved"], line["history"], line["resolved"]["epochs"]
    teacher = line["teacher"]
    if any(len(history[key]) != epochs for key in CURVES):
        return f"its history is not one of {epochs} epochs"
    for name, epoch in (("last", epochs), ("best", min(line["best"]["epoch"], epochs))):
        row = line[name]
        if row["epoch"] != epoch:
            return f"its {name} is of epoch {row['epoch']} of {epochs}"
        for key in ("top1", "loss"):
            told = history[f"test/{key}"][epoch - 1]
            if not math.isclose(row[key], told, rel_tol=1e-6, abs_tol=1e-4):
                return f"its {name} has a {key} of {row[key]}, its history {told}"
    if line["best"]["top1"] < max(history["test/top1"]) - 1e-4:
        return f"its best has a top1 of {line['best']['top1']}, its history a better one"
    if line["seed"] != resolved["seed"]:
        return f"its seed is {line['seed']}, its configuration's is {resolved['seed']}"
    if (teacher is not None) != bool(resolved["terms"]):
        return "only one of its teacher and its configuration's terms says that it was taught"
    if line["student"]["model"] != resolved["student"]:
        return f"its student is {line['student']['model']}, not {resolved['student']}"
    if teacher and teacher["model"] != resolved["teacher"]["model"]:
        return f"its teacher is {teacher['model']}, not {resolved['teacher']['model']}"
    if len({len(row) for row in line["matrix"]}) > 1 or [] in line["matrix"]:
        return "its matrix has rows of different lengths, or of none"
    if not 1 <= len(line["class_names"]) <= roc.CURVE_CLASSES:
        return f"it has {len(line['class_names'])} class_names, not 1 to {roc.CURVE_CLASSES}"
    if line["roc"]:
        size, curves = len(line["roc"]["fpr"]), line["roc"]["curves"]
        if unknown := curves.keys() - {"micro", *map(str, range(len(line["class_names"])))}:
            return f"its roc has a curve of {min(unknown)!r}, which its class_names lack"
        if not size or any(len(curve["tpr"]) != size for curve in curves.values()):
            return "its roc has curves of different lengths, or of none"
    return ""


def check(line: Any) -> None:
    """Raises ValueError if a line is not a whole result, or was changed after it was written."""
    if wrong := fault(line, LINE) or contradiction(line):
        raise ValueError(wrong)
    if (name := runs.name_of(line["resolved"])) != line["hash"]:
        raise ValueError(
            f"its hash is {line['hash']}, its configuration's is {name}; the line was edited, or a"
            " default in configs/common.py"
        )
