"""The beginning and the end of the report: what was found, and what was not run."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from atkd_jax import models
from atkd_jax.errors import UserError
from atkd_jax.models.size import count_macs
from atkd_jax.training import from_config
from experiments.queue import jobs
from experiments.report.claims import claims
from experiments.report.document import Block, Grid, Heading, Items, Text
from experiments.results.measure import prepared
from experiments.results.schema import Line
from experiments.results.statistics import Cell, rank_correlation
from experiments.tables.rows import Table

HOURS = "hours a seed, estimated"
Filled = Mapping[str, Mapping[str, Sequence[Cell]]]  # table -> protocol -> cells


@functools.cache
def macs_of(model: str, size: int, classes: int) -> int:
    return count_macs(models.create(model, classes), (size, size, 3))


def work_of(config: ConfigDict) -> tuple[float, int]:
    """Multiply-adds of training on one image (backward counts twice), and images of a job."""
    info = from_config.dataset(config).info(config.data.data_dir or None)
    size, classes = info.image_shape[0], info.num_classes
    work = 3 * macs_of(config.student, size, classes)
    if config.terms:
        work += macs_of(config.teacher.model, size, classes)
    return work, info.num_train * config.epochs


def not_run(tables: Mapping[str, Table], filled: Filled, results: Mapping[str, Line]) -> Grid:
    """Tables without a result, the data sets they lack, and what one of their jobs costs."""
    speed = max(map(speed_of, results.values()), default=0.0)
    rows = []
    for name, protocols in filled.items():
        cells = [cell for cells in protocols.values() for cell in cells]
        if any(cell.n for cell in cells):
            continue
        row = next((c.row for c in cells if c.row.method in ("kd", "rtk", "dkd")), cells[0].row)
        texts = {cell.row.dataset: cell.row.config for cell in cells}
        absent = []
        try:
            absent = [n for n, t in sorted(texts.items()) if not prepared(jobs.read(t).data.name)]
            work, images = work_of(jobs.resolve(row.config).config)
            hours = f"{work * images / speed / 3600:,.0f}" if speed else ""
        except UserError as error:
            hours = str(error)
        title = tables[name].title
        rows.append([name, title, f"{len(cells)}", ", ".join(absent), f"`{row.config}`", hours])
    header = ["table", "title", "cells", "data not prepared here", "a run of it", HOURS]
    return Grid(header, rows, [HOURS])


def speed_of(line: Line) -> float:
    """Multiply-adds per second; 0 for a training without a teacher."""
    if not line["teacher"]:
        return 0.0
    work = 3 * line["student"]["macs"] + line["teacher"]["macs"] / line["company"]
    return work * line["images_per_second"]


def forecasts(filled: Filled) -> list[str]:
    """Rank correlations of the short table with RTK's Table 1, which is of other networks."""
    printed = {
        cell.row.method: cell.row.published
        for cell in filled.get("rtk_table1", {}).get("paper", ())
        if cell.row.dataset == "cifar10" and cell.row.method != "teacher"
    }
    lines = []
    for protocol, cells in filled.get("cifar10_small", {}).items():
        both = [(c.mean, printed[c.row.method]) for c in cells if c.n and c.row.method in printed]
        if rank := rank_correlation(both):
            lines.append(
                "order of the methods: RTK's Table 1 on CIFAR-10 (ResNet-56 → ResNet-20, 240"
                f" epochs) and ResNet-20 → ResNet-8, {protocol}: rank correlation {rank[0]:.2f}"
                f" over {rank[1]} students (1: the same order, 0: unrelated)"
            )
    return lines


def machine(line: Line) -> str:
    """The machine that a line was measured on."""
    it = line["hardware"]
    return f"{it['devices']} x {it['device']} ({it['cpus']} CPU cores)"


def summarize(filled: Filled, results: Mapping[str, Line], studies: Path) -> list[Block]:
    """What was found of the slides' claims, and what agrees with the papers and what does not."""
    cells = [c for protocols in filled.values() for some in protocols.values() for c in some]
    by_verdict: dict[str, list[str]] = {}
    for cell in cells:
        if cell.difference is not None:
            about = f"{cell.row.method} {cell.row.pair} {cell.row.dataset} {cell.difference:+.2f}"
            by_verdict.setdefault(cell.verdict, []).append(about)
    blocks: list[Block] = [
        Text("What the slides of this project expect of AT-KD, and what was found:"),
        Items([f"**{claim}.** {found}" for claim, found in claims(cells, results, studies)]),
    ]
    if not by_verdict:
        blocks.append(
            Text(
                "No cell that a paper prints has been measured yet, so nothing can be said to"
                " agree or to disagree with a paper's table."
            )
        )
    blocks.append(Items([f"**{v}**: {'; '.join(found)}" for v, found in by_verdict.items()]))
    teachers = {
        (line["resolved"]["teacher"]["weights"], line["teacher"]["hash"]): line
        for line in results.values()
        if line["teacher"] and line["resolved"]["teacher"]["expect_top1"]
    }
    blocks.append(
        Items(
            [
                f"published teacher {name}, SHA-256 {digest}…: {line['teacher']['top1']:.2f} here,"
                f" {line['resolved']['teacher']['expect_top1']:.2f} published"
                for (name, digest), line in teachers.items()
            ]
        )
    )
    blocks.append(Items(forecasts(filled)))
    return [b for b in blocks if not isinstance(b, Items) or b.items]


def without_results(
    tables: Mapping[str, Table], filled: Filled, results: Mapping[str, Line]
) -> list[Block]:
    """Tables that nothing is known of, in one list."""
    missing = not_run(tables, filled, results)
    if not missing.rows:
        return []
    fastest = max(results.values(), key=speed_of, default=None)
    text = (
        "What they lack: data, or hours on the machine of the fastest run in these results,"
        f" {machine(fastest) if fastest else 'none yet'}. The hours are an estimate: the"
        " multiply-adds of one training, at the rate of that run."
    )
    return [Heading("Tables without results"), Text(text), missing]


def problems_with(problems: Sequence[str]) -> list[Block]:
    if not problems:
        return []
    return [Heading("Wrong with the files or the tables"), Items(list(problems))]
