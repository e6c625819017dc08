"""Statistics of a table's cells: mean, spread, verdict, and the paired difference to KD.

Pure functions of rows and results. A cell without results has n = 0 and no numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from atkd_jax.errors import UserError
from experiments.queue import jobs
from experiments.results.schema import Line
from experiments.tables.rows import TABLES, Row, Table

CONFIDENCE = 0.95
ROUNDING = 1e-9  # of differences between accuracies in percent


@dataclasses.dataclass(frozen=True)
class Cell:
    """The results of a row under one protocol.

    Attributes:
      values: seed -> number, in the row's metric and of the row's epoch.
      seconds: of all its jobs together.
      lines: seed -> result line.
    """

    row: Row
    protocol: str
    values: Mapping[int, float]
    seconds: float
    lines: Mapping[int, Line]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def first_line(self) -> Line:
        """Of the lowest seed; the cell has to be filled."""
        return self.lines[min(self.lines)]

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        if self.mean is None or self.row.published is None:
            return None
        return self.mean - self.row.published

    @property
    def verdict(self) -> str:
        """Whether the mean lies within the published value ± the seeds' standard deviation."""
        if self.difference is None:
            return ""
        if self.protocol != "paper":
            return "another protocol"
        if self.sd is None:
            return "one seed"
        if abs(self.difference) <= self.sd:
            return "inside"
        return "above" if self.difference > 0 else "below"


@dataclasses.dataclass(frozen=True)
class Gap:
    """A mean difference.

    Attributes:
      mean: of the differences.
      half: half the width of its confidence interval; None for a single difference.
      n: number of differences.
    """

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + ("" if self.half is None else f" ± {self.half:.2f}")

    @property
    def verdict(self) -> str:
        """Whether the confidence interval excludes zero."""
        if self.half is None:
            return "one seed, which says nothing about chance"
        if abs(self.mean) <= self.half + ROUNDING:
            return "not distinguishable"
        return "better" if self.mean > 0 else "worse"


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Gap | None:
    """ours - theirs by seed, or by what else they share, with the interval of Student's t.

    None if nothing is shared.
    """
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    gaps = [ours[seed] - theirs[seed] for seed in both]
    half = None
    if len(gaps) > 1:
        t = stats.t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1)
        half = float(t * statistics.stdev(gaps) / math.sqrt(len(gaps)))
    return Gap(statistics.mean(gaps), half, len(gaps))


def value_of(row: Row, line: Line) -> float | None:
    """A result in the row's metric; None if that was not measured."""
    if row.metric == "unseen":
        return line.get("unseen")
    if row.metric == "teacher":
        return line["teacher"]["top1"]
    if row.metric != "top1":
        return 100 * line["areas"][row.metric]
    return line["best" if row.epoch == "best" else "last"]["top1"]


def fill(row: Row, protocol: str, results: Mapping[str, Line]) -> Cell:
    """The cell of a row.

    Raises:
      UserError: its configuration does not exist.
    """
    jobs.resolve(row.config, row.role, protocol)
    lines = {}
    for seed in seeds_of(row, results):
        name = jobs.resolve(row.config, row.role, protocol, seed).hash
        if name in results and value_of(row, results[name]) is not None:
            lines[seed] = results[name]
    values = {seed: value_of(row, line) for seed, line in lines.items()}
    return Cell(row, protocol, values, sum(line["seconds"] for line in lines.values()), lines)


def seeds_of(row: Row, results: Mapping[str, Line]) -> list[int]:
    """The seeds that any result on the row's data has."""
    lines = results.values()
    return sorted({x["seed"] for x in lines if x["config"].partition(":")[0] == row.dataset})


def known_hashes(results: Mapping[str, Line]) -> set[str]:
    """The jobs that rows refer to, and their teachers, on data that has results."""
    known = set()
    for table in TABLES.values():
        for row in table.rows:
            for protocol in jobs.PROTOCOLS:
                for seed in seeds_of(row, results):
                    with contextlib.suppress(UserError):  # fill_table reports such a row
                        job = jobs.resolve(row.config, row.role, protocol, seed)
                        known |= {job.hash} | ({job.teacher.hash} if job.teacher else set())
    return known


def fill_table(
    table: Table, results: Mapping[str, Line]
) -> tuple[dict[str, list[Cell]], list[str]]:
    """{protocol: cells in the order of the rows}, and the problems with rows.

    Protocols without a result are left out; without any result, the paper's is kept.
    """
    found: dict[str, list[Cell]] = {}
    problems = []
    for protocol in jobs.PROTOCOLS:
        cells = []
        for row in table.rows:
            try:
                cells.append(fill(row, protocol, results))
            except UserError as error:
                if protocol == "paper":
                    problems.append(f"{row.method} of {row.pair or row.dataset}: {error}")
                cells.append(Cell(row, protocol, {}, 0.0, {}))
        found[protocol] = cells
    if protocols_agree(table):  # digits is short already
        return {"quick": found["quick"]}, problems
    kept = {p: cells for p, cells in found.items() if any(cell.n for cell in cells)}
    return kept or {"paper": found["paper"]}, problems


def protocols_agree(table: Table) -> bool:
    """Whether all protocols define the same jobs for this table."""
    row = table.rows[0]
    try:
        names = {jobs.resolve(row.config, row.role, p).hash for p in jobs.PROTOCOLS}
    except UserError:
        return False
    return len(names) == 1


def above_line(points: np.ndarray, others: np.ndarray) -> Gap:
    """How far points lie above the straight line through other points, on average.

    The interval contains the uncertainty of the line, and takes both to scatter alike.

    Args:
      points: [N, 2], x and y.
      others: the same, three at least, of different x.
    """
    (x, y), (x_0, y_0) = points.T, others.T
    line = np.polyfit(x_0, y_0, 1)
    freedom = len(others) - 2
    variance = np.square(y_0 - np.polyval(line, x_0)).sum() / freedom
    leverage = np.square(x.mean() - x_0.mean()) / np.square(x_0 - x_0.mean()).sum()
    error = math.sqrt(variance * (1 / len(points) + 1 / len(others) + leverage))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Gap(float((y - np.polyval(line, x)).mean()), half, len(points))


def against_kd(cell: Cell, results: Mapping[str, Line]) -> Gap | None:
    """Paired difference to KD on the same data, with the same networks and the same metric."""
    row = cell.row
    if row.method in ("kd", "teacher"):
        return None
    kd = dataclasses.replace(row, config=row.config.replace(f"method={row.method}", "method=kd"))
    try:
        return paired(cell.values, fill(kd, cell.protocol, results).values)
    except UserError:
        return None


def comparable(cells: Sequence[Cell]) -> dict[tuple[str, str, str, str], list[Cell]]:
    """Cells whose numbers are comparable, by (data, pair, setting, metric)."""
    found: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.row.metric != "teacher":
            row = cell.row
            key = (row.dataset, row.pair, row.setting, row.metric)
            found.setdefault(key, []).append(cell)
    return found


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> tuple[float, int] | None:
    """Spearman's rank correlation and the number of pairs; None for fewer than four."""
    if len(pairs) < 4:
        return None
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def rank_agreement(cells: Sequence[Cell]) -> tuple[float, int] | None:
    """Rank correlation of the students' measured and published numbers, and their number.

    None for fewer than four that have both. The cells have to be comparable.
    """
    students = [c for c in cells if c.difference is not None and c.row.method != "teacher"]
    return rank_correlation([(c.mean, c.row.published) for c in students])


def protocol_agreement(cells: Sequence[Cell], others: Sequence[Cell]) -> tuple[float, int] | None:
    """Rank correlation of the students' means under two protocols, and their number.

    Both lists follow the rows of one table. None for fewer than four students that both have.
    """
    pairs = zip(cells, others, strict=True)
    return rank_correlation(
        [(a.mean, b.mean) for a, b in pairs if a.n and b.n and a.row.role == "student"]
    )


def seed_agreement(cells: Sequence[Cell]) -> tuple[float, int, int] | None:
    """How well seeds agree on the order of the students: can this protocol tell methods apart?

    Returns:
      the mean over pairs of seeds of the rank correlation between their numbers, the number of
      cells, and that of seeds. None for fewer than four cells or two seeds that all of them have,
      or if all numbers of a seed are equal.
    """
    chosen = [cell for cell in cells if cell.n and cell.row.role == "student"]
    if len(chosen) < 4:
        return None
    seeds = sorted(set.intersection(*(set(cell.values) for cell in chosen)))
    columns = [[cell.values[seed] for cell in chosen] for seed in seeds]
    if len(seeds) < 2 or any(len(set(column)) == 1 for column in columns):
        return None
    pairs = itertools.combinations(columns, 2)
    mean = statistics.mean(float(stats.spearmanr(a, b).statistic) for a, b in pairs)
    return mean, len(chosen), len(seeds)
