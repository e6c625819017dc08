"""What studies of finished students share: which students there are, and a file of rows."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.results.schema import Line
from experiments.tables.rows import Row


def finished(workdir: Path, lines: Mapping[str, Line]) -> Iterator[tuple[Line, Path]]:
    """(result line, folder) of the students of `--table=few_images` that are in `workdir`."""
    for name, line in lines.items():
        folder = workdir / name
        row = Row(line["config"])
        of_table = row.dataset == "few_images" and not row.options.keys() & {"data", "pair"}
        if of_table and (folder / "export").exists():
            yield line, folder


def about(line: Line) -> dict[str, Any]:
    """Which student it is."""
    options = Row(line["config"]).options
    return {
        "hash": line["hash"],
        "method": options["method"],
        "images": int(options["images"]),
        "steps": int(options["steps"]),
        "seed": line["seed"],
    }


def read(path: Path, lines: Container[str]) -> list[dict[str, Any]]:
    """The rows that `write` wrote, of students that still have a result line."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return [row for row in rows if row["hash"] in lines]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
