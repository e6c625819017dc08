"""Makes the report: reads the results, draws the figures, and writes both files."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from atkd_jax.command_line import Parser
from atkd_jax.errors import UserError
from experiments import arguments
from experiments.report import figures
from experiments.report.document import (
    Block,
    Contents,
    Heading,
    Picture,
    Text,
    to_html,
    to_markdown,
)
from experiments.report.summary import problems_with, summarize, without_results
from experiments.report.text import INTRO, TITLE, blocks_of
from experiments.results import store
from experiments.results.statistics import Cell, comparable, fill_table, known_hashes
from experiments.tables.rows import TABLES

CAPTIONS = {
    "curves": "cross-entropy and accuracy on test images; band: range over the seeds",
    "methods": "all methods",
    "images": "gain over KD by number of training images; band: range over the seeds",
    "pairs": "pairs of networks",
    "matrix": "attention between student and teacher blocks",
    "roc": "receiver operating characteristics, each class against the rest",
    "maps": "where teacher and students (seed 0) are active on the same test images",
}


def main(doc: str) -> None:
    """The command whose docstring is `doc`."""
    parser = Parser(doc)
    parser.add_argument("--workdir", type=readable, default=Path("runs/tables"))
    parser.add_argument("--weights", type=arguments.folder, help="folder of published weights")
    parser.add_argument("--results", type=arguments.folder, default=store.RESULTS)
    here = Path(__file__).parents[1]
    parser.add_argument("--studies", type=arguments.folder, default=here / "studies")
    parser.add_argument("--out", type=arguments.writable, default=here)
    make(parser.parse_args())


def readable(text: str) -> Path:
    """A folder, which may be missing; `~` is the user's."""
    path = Path(text).expanduser()
    return arguments.folder(text) if os.path.lexists(path) else path


def make(args: argparse.Namespace) -> None:
    """Reads the results and writes the report."""
    results, problems = store.read(args.results)
    filled = {}
    for name, table in TABLES.items():
        filled[name], wrong = fill_table(table, results)
        problems += [f"{name}: {text}" for text in wrong]
    problems += store.differing_teachers(results)
    problems += store.unreferenced(results, known_hashes(results))
    blocks: list[Block] = []
    for name, table in TABLES.items():
        if not any(cell.n for cells in filled[name].values() for cell in cells):
            continue
        drawn, wrong = draw(name, filled[name], args)
        blocks += [*blocks_of(name, table, filled[name], results), *drawn]
        problems += wrong
    blocks = [
        Heading(TITLE, 1),
        *summarize(filled, results, args.studies),
        Contents(),
        *blocks,
        *without_results(TABLES, filled, results),
        Heading("How to read this"),
        Text(INTRO),
        *problems_with(problems),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "REPORT.md", to_markdown(blocks, args.out))
    write(args.out / "report.html", to_html(blocks, TITLE))
    print(f"{args.out / 'REPORT.md'}, {args.out / 'report.html'}: {len(results)} results")
    for problem in problems:
        print(f"warning: {problem}")


def draw(
    name: str, filled: Mapping[str, Sequence[Cell]], args: argparse.Namespace
) -> tuple[list[Picture], list[str]]:
    """The figures of a table, of comparable cells and of whole data sets, and the problems.

    A figure that fails is left out and reported.
    """
    found, problems = [], []
    for protocol, cells in filled.items():
        parts = comparable(cells)
        wanted = [("methods", key, part) for key, part in parts.items() if not part[0].row.setting]
        for kind in TABLES[name].figures:
            if kind in ("pairs", "matrix", "images"):
                for data in dict.fromkeys(key[0] for key in parts):
                    wanted.append((kind, (data,), [c for c in cells if c.row.dataset == data]))
            else:
                wanted += [
                    (kind, key, part)
                    for key, part in parts.items()
                    if part[0].row.metric != "unseen"
                ]
        for kind, key, part in wanted:
            words = [word for word in key if word not in ("", "top1")]
            suffix = "png" if kind == "maps" else "svg"
            path = args.out / "figures" / f"{'-'.join([name, *words, protocol, kind])}.{suffix}"
            try:
                if kind == "maps":
                    drawn = figures.draw_maps(part, path, args.workdir, args.weights)
                else:
                    drawn = figures.DRAW[kind](part, path)
            except Exception as error:
                if not isinstance(error, UserError | OSError):
                    traceback.print_exc()
                problems.append(f"{path.name} is not drawn: {error or type(error).__name__}")
                continue
            if drawn:
                title = f"{TABLES[name].title} ({', '.join([*words, protocol])}): {CAPTIONS[kind]}"
                found.append(Picture(drawn, title))
    return found, problems


def write(path: Path, text: str) -> None:
    """Writes a file atomically."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
