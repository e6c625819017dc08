"""The schema of a result line: every field, its type, its range, and what has to agree within it.

A line may have been edited by a person or cut off by a full disk. Readers index valid lines without
further checks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import UnionType
from typing import Any, Union

import numpy as np

from atkd_jax.errors import UserError
from experiments.queue import jobs
from experiments.results import roc

Line = dict[str, Any]
Shape = Union["Kind", dict, list, tuple]


class Damaged(UserError):
    """A result line, or a file that one is made from, does not hold what it should."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values that a field may have: a description, and a predicate."""

    words: str
    fits: Callable[[Any], bool]


def number(low: float, high: float, types: type | UnionType = int | float) -> Kind:
    """Numbers within a range; NaN is in none, and booleans are no numbers."""

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
RATE = number(0, 1e12)  # times, too; rounding may give 0
NAME, WORDS, ANY = text(1), text(0), Kind("text", lambda x: isinstance(x, str))
NULL, EMPTY = Kind("null", lambda x: x is None), Kind("empty", lambda x: x == {})
CURVES = {"train/loss": [VALUE], "test/loss": [LOSS], "test/top1": [PERCENT]}

# A dict has these keys (others are not checked; `...` stands for every key), a list has any number
# of such items, a tuple lists alternatives.
ROW = {"epoch": COUNT, "top1": PERCENT, "top5": PERCENT, "loss": LOSS}
NETWORK = {"model": NAME, "params": COUNT, "macs": COUNT, "hash": NAME}
LINE = {
    "hash": NAME,
    "config": NAME,
    "role": one_of(*jobs.ROLES),
    "protocol": one_of(*jobs.PROTOCOLS),
    "seed": number(0, 2**31 - 1, int),
    "last": ROW,
    "best": ROW,
    "areas": {"hard": PART, "macro": PART, "micro": PART},
    "unseen": (NULL, PERCENT),
    "teacher": (NULL, NETWORK | {"top1": PERCENT}),
    "student": NETWORK,
    "seconds": RATE,
    "images_per_second": RATE,
    "company": COUNT,  # students trained together; the name that the lines in results/ have
    # os.cpu_count() may return None.
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


def fault(value: Any, shape: Shape, where: str = "") -> str:
    """The first mismatch of a value and a shape, in words; empty if there is none."""
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
    shown = "null" if value is None else repr(value)
    return shown if len(shown) < 50 else f"{shown[:46]}..."


def tests(resolved: dict[str, Any]) -> int:
    """How often a run tests its student."""
    return -(-resolved["epochs"] // resolved.get("test_every_epochs", 1))


def tested_epochs(resolved: dict[str, Any]) -> list[int]:
    """The epochs, from 1 on, after which a run tests its student."""
    every = resolved.get("test_every_epochs", 1)  # older lines lack it
    return [min(i * every, resolved["epochs"]) for i in range(1, tests(resolved) + 1)]


def contradiction(line: Line) -> str:
    """The first disagreement between valid parts of a line, in words; empty if there is none."""
    resolved, history, epochs = line["resolved"], line["history"], line["resolved"]["epochs"]
    teacher = line["teacher"]
    if wrong := fault(resolved.get("test_every_epochs", 1), COUNT, "resolved.test_every_epochs"):
        return wrong
    if any(len(history[key]) != tests(resolved) for key in CURVES):
        return f"its history is not one of {tests(resolved)} tests in {epochs} epochs"
    tested = tested_epochs(resolved)
    for name, allowed in (("last", tested[-1:]), ("best", tested)):
        row = line[name]
        if row["epoch"] not in allowed:
            return f"its {name} is of epoch {row['epoch']} of {epochs}"
        for key in ("top1", "loss"):
            recorded = history[f"test/{key}"][tested.index(row["epoch"])]
            if not math.isclose(row[key], recorded, rel_tol=1e-6, abs_tol=1e-4):
                return f"its {name} has a {key} of {row[key]}, its history {recorded}"
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
    """Checks a line that was read from a file.

    Raises:
      Damaged: it is not a whole result, or was changed after it was written.
    """
    if wrong := fault(line, LINE) or contradiction(line):
        raise Damaged(wrong)
    if (name := jobs.name_of(line["resolved"])) != line["hash"]:
        raise Damaged(
            f"its hash is {line['hash']}, its configuration's is {name}; the line was edited, or a"
            " default in configs/common.py"
        )
