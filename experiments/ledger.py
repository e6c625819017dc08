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
NEEDED = ("hash", "config", "role", "protocol", "seed", "resolved", "last", "best", "seconds")


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


def read(folder: Path = RESULTS) -> tuple[dict[str, Line], list[str]]:
    """All results by hash, and what is wrong with the files, in words.

    Of lines that repeat a result one is kept; results of one hash that disagree are all left out.
    """
    found: dict[str, list[tuple[str, Line]]] = {}
    problems = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, text in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.name}:{number}"
            try:
                line = json.loads(text)
                check(line)
            except ValueError as error:
                problems.append(f"{where} is left out: {error}")
                continue
            found.setdefault(line["hash"], []).append((where, line))
    results = {}
    for name, lines in found.items():
        values = [(line["last"]["top1"], line["best"]["top1"]) for _, line in lines]
        if len(set(values)) > 1:
            told = ", ".join(f"{w} {v[0]:.2f}" for (w, _), v in zip(lines, values, strict=True))
            about = lines[0][1]
            problems.append(
                f"{about['config']} seed {about['seed']} ({about['protocol']}, {name}) is left"
                f" out: its results disagree ({told})"
            )
        else:
            results[name] = lines[0][1]
    return results, problems


def check(line: Any) -> None:
    """Raises ValueError if a line is not a whole result, or was changed after it was written."""
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    if missing := [key for key in NEEDED if key not in line]:
        raise ValueError(f"it has no {', '.join(missing)}")
    epochs = line["resolved"]["epochs"]
    if any(len(values) != epochs for values in line.get("history", {}).values()):
        raise ValueError(f"its history is not one of {epochs} epochs")
    if (name := runs.name_of(line["resolved"])) != line["hash"]:
        raise ValueError(
            f"its hash is {line['hash']}, its configuration's is {name}; the line was edited, or a"
            " default in configs/common.py"
        )


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
