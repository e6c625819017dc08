"""The results store: one JSON object per finished job in results/*.jsonl, appended, never changed.

A faulty line is reported and ignored.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atkd_jax.errors import UserError, unwritable
from experiments.queue import jobs
from experiments.queue.jobs import Job
from experiments.results.schema import Damaged, Line, check

RESULTS = Path(__file__).parent
NUMBERS = ("last", "best", "areas", "unseen")  # equal in all lines of one job


def append(path: Path, line: Line) -> None:
    """Adds one line and waits until it is on the disk; a torn last line is ended first.

    Raises:
      Damaged: it is no result.
      OSError: it cannot be written. In both cases the file is unchanged.
    """
    text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    parse(text)  # as readers do
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            text = b"\n" + text
        try:
            if file.write(text) < len(text):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)
            raise unwritable(path, error.strerror) from error


def lines(folder: Path = RESULTS) -> tuple[dict[str, list[tuple[str, Line]]], list[str]]:
    """All valid lines as {hash: [(FILE:NUMBER, line), ...]}, and the problems with the others.

    A missing folder has no lines; a file that cannot be read is one of the problems.

    Raises:
      OSError: the folder cannot be read.
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
            except Damaged as error:
                problems.append(f"{where} is left out: {error}")
                continue
            found.setdefault(line["hash"], []).append((where, line))
    return found, problems


def read(folder: Path = RESULTS) -> tuple[dict[str, Line], list[str]]:
    """All results by hash, and the problems with the files.

    Of lines that repeat a result one is kept; results of one hash that disagree are all left out.
    """
    found, problems = lines(folder)
    results = {}
    for name, same in found.items():
        first = same[0][1]
        if all(line.get(key) == first.get(key) for _, line in same for key in NUMBERS):
            results[name] = first
        else:
            values = ", ".join(f"{where} {line['last']['top1']:.2f}" for where, line in same)
            problems.append(
                f"{first['config']} seed {first['seed']} ({first['protocol']}, {name}) is left"
                f" out: its results disagree ({values}); the file may keep the right one alone"
            )
    return results, problems


def parse(text: bytes) -> Line:
    """The result in a line.

    Raises:
      Damaged: there is none.
    """
    try:
        line = json.loads(text)
    except UnicodeDecodeError as error:
        raise Damaged("it is not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise Damaged(f"it is not whole JSON ({error})") from error
    check(line)
    return line


def differing_teachers(results: dict[str, Line]) -> list[str]:
    """Problems with teachers that were trained more than once, with different results."""
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


def unreferenced(results: dict[str, Line], known: Iterable[str]) -> list[str]:
    """Problems with results that no row of a table refers to (any more).

    Args:
      known: the hashes of all jobs that rows refer to.
    """
    known, problems = set(known), []
    for name, line in results.items():
        if name in known:
            continue
        about = f"{line['config']} seed {line['seed']} ({line['protocol']}, {name})"
        try:
            now = jobs.resolve(line["config"], line["role"], line["protocol"], line["seed"])
        except UserError as error:
            problems.append(f"{about} is in no table: its configuration no longer exists ({error})")
            continue
        if now.hash == name:
            problems.append(f"{about} is in no table: no row asks for it")
        else:
            problems.append(f"{about} is in no table: {difference(line['resolved'], now)}")
    return problems


def difference(was: dict[str, Any], now: Job) -> str:
    """The keys of a configuration that have changed since a result was written."""
    old, new = jobs.identity(was), jobs.identity(now.config.to_dict())
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    parts = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys]
    return "its configuration has changed: " + "; ".join(parts)
