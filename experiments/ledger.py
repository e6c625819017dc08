"""The result lines: one JSON object per finished run in results/*.jsonl, appended, never changed.

What is wrong with a line is said in words; a line that something is wrong with counts for nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from atkd_jax.errors import unwritable
from experiments import runs
from experiments.schema import Line, check

RESULTS = Path(__file__).parent / "results"
NUMBERS = ("last", "best", "areas", "unseen")  # what results of one run have to agree in


def append(path: Path, line: Line) -> None:
    """Adds one line, whole and on the disk when this returns; a torn last line is ended first.

    Raises:
      ValueError: it is no result.
      OSError: it cannot be written. The file is as it was, in both cases.
    """
    text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    parse(text)  # as readers will
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            text = b"\n" + text
        try:
            if file.write(text) < len(text):  # the disk took a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)
            raise unwritable(path, error.strerror) from error


def lines(folder: Path = RESULTS) -> tuple[dict[str, list[tuple[str, Line]]], list[str]]:
    """{hash: [(FILE:NUMBER, line), ...]} of all whole lines, and what is wrong with the others.

    A folder that is not there has no lines.

    Raises:
      OSError: the folder cannot be read; a file that cannot is one of the problems.
    """
    found: dict[str, list[tuple[str, Line]]] = {}
    problems = []
    paths = sorted(folder.iterdir()) if folder.exists() else []
    for path in (path for path in paths if path.suffix == ".jsonl"):
        try:
            texts = path.read_bytes().splitlines()
        except OSError as error:
            problems.append(f"{path.name} is left out: {error.strerror}")
            continue
        for number, text in enumerate(texts, 1):
            where = f"{path.name}:{number}"
            try:
                line = parse(text)
            except ValueError as error:
                problems.append(f"{where} is left out: {error}")
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
                f" out: its results disagree ({told}); the file may keep the right one alone"
            )
    return results, problems


def parse(text: bytes) -> Line:
    """The result that a line holds.

    Raises:
      ValueError: it holds none.
    """
    try:
        line = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is not whole JSON ({error})") from error
    check(line)
    return line


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
