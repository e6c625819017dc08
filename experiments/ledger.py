"""The result lines: one JSON object per finished run in results/*.jsonl, appended, never changed.

What is wrong with a line is said in words; a line that something is wrong with counts for nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import runs

RESULTS = Path(__file__).parent / "results"
Line = dict[str, Any]
# Without these a line is no result.
NEEDED = (
    "hash", "config", "role", "protocol", "seed", "resolved", "last", "best", "areas", "seconds",
    "images_per_second", "company", "hardware", "teacher", "student", "history", "roc", "matrix",
    "class_names",
)  # fmt: skip
NUMBERS = ("last", "best", "areas", "unseen")  # what results of one run have to agree in


def append(path: Path, line: Line) -> None:
    """Adds one line, whole and on the disk when this returns; a torn last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start = b""
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            start = b"\n"
        file.write(start + json.dumps(line, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def lines(folder: Path = RESULTS) -> tuple[dict[str, list[tuple[str, Line]]], list[str]]:
    """{hash: [(FILE:NUMBER, line), ...]} of all whole lines, and what is wrong with the others."""
    found: dict[str, list[tuple[str, Line]]] = {}
    problems = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            where = f"{path.name}:{number}"
            try:
                line = json.loads(text)
                check(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"{where} is left out: {describe(error)}")
                continue
            found.setdefault(line["hash"], []).append((where, line))
    return found, problems


def read(folder: Path = RESULTS) -> tuple[dict[str, Line], list[str]]:
    """All results by hash, and what is wrong with the files, in words.

    Of lines that repeat a result one is kept; results of one hash that disagree are all left out.
    """
    found, problems = lines(folder)
    results = {}
    for name, same in found.items():
        first = same[0][1]
        if all(line.get(key) == first.get(key) for _, line in same for key in NUMBERS):
            results[name] = first
        else:
            told = ", ".join(f"{where} {line['last']['top1']:.2f}" for where, line in same)
            problems.append(
                f"{first['config']} seed {first['seed']} ({first['protocol']}, {name}) is left"
                f" out: its results disagree ({told}); delete what is wrong"
            )
    return results, problems


def describe(error: Exception) -> str:
    """In words; a KeyError says only its key."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not whole JSON ({error})"
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def check(line: Any) -> None:
    """Raises ValueError if a line is not a whole result, or was changed after it was written."""
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    if missing := [key for key in NEEDED if key not in line]:
        raise ValueError(f"it has no {', '.join(missing)}")
    for key in ("last", "best"):
        if not isinstance(line[key].get("top1"), float | int):
            raise ValueError(f"its {key} has no top1")
    epochs = line["resolved"]["epochs"]
    if any(len(values) != epochs for values in line["history"].values()):
        raise ValueError(f"its history is not one of {epochs} epochs")
    if (name := runs.name_of(line["resolved"])) != line["hash"]:
        raise ValueError(
            f"its hash is {line['hash']}, its configuration's is {name}; the line was edited, or a"
            " default in configs/common.py"
        )


def taught_differently(results: dict[str, Line]) -> list[str]:
    """Names trained teachers of which results have seen more than one version."""
    seen: dict[str, set[str]] = {}
    for line in results.values():
        weights = line["resolved"]["teacher"]["weights"]
        if line["teacher"] and weights.startswith("run:"):
            seen.setdefault(weights, set()).add(line["teacher"]["hash"])
    return [
        f"the teacher {weights} was trained {len(hashes)} times with different results"
        f" ({', '.join(sorted(hashes))}); its students differ in that, too"
        for weights, hashes in seen.items()
        if len(hashes) > 1
    ]


def strangers(results: dict[str, Line], known: Iterable[str]) -> list[str]:
    """Names results that no row asks for (any more).

    Args:
      known: the hashes of all runs that rows ask for.
    """
    known, told = set(known), []
    for name, line in results.items():
        if name in known:
            continue
        about = f"{line['config']} seed {line['seed']} ({line['protocol']}, {name})"
        try:
            now = runs.resolve(line["config"], line["role"], line["protocol"], line["seed"])
        except ValueError as error:
            told.append(f"{about} is in no table: its configuration no longer exists ({error})")
            continue
        if now.hash == name:
            told.append(f"{about} is in no table: no row asks for it")
        else:
            told.append(f"{about} is in no table: {difference(line['resolved'], now)}")
    return told


def difference(was: dict, now: runs.Run) -> str:
    """The keys in which a configuration has changed since a result was written."""
    old, new = runs.identity(was), runs.identity(now.config.to_dict())
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    parts = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys]
    return "its configuration has changed: " + "; ".join(parts)
