"""A document as a list of blocks, rendered as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table; the columns in `numeric` are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


@dataclasses.dataclass(frozen=True)
class Contents:
    """Links to all headings of the second level."""


Block = Heading | Text | Items | Grid | Picture | Contents

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: left; }
th { border-bottom: 2px solid #999; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:hover { background: #f4f7fb; }
code { font-size: 12px; background: #f2f2f2; padding: 0 .2rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; }
"""


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """GitHub's Markdown; pictures are linked relative to `folder`."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append("#" * level + " " + text)
            case Text(text):
                parts.append(text)
            case Items(items):
                parts.append("\n".join(f"- {item}" for item in items))
            case Grid(header, rows, numeric):
                rule = ["---:" if name in numeric else "---" for name in header]
                lines = [header, rule, *([c.replace("|", "\\|") for c in row] for row in rows)]
                parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
            case Picture(path, caption):
                parts.append(f"![{caption}]({path.relative_to(folder)})\n\n*{caption}*")
            case Contents():
                links = [f"- [{plain(text)}](#{anchor(text)})" for text in sections(blocks)]
                parts.append("\n".join(links))
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """One page that includes its style and pictures."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f'<h{level} id="{anchor(text)}">{inline(text)}</h{level}>')
            case Text(text):
                parts.append(f"<p>{inline(text)}</p>")
            case Items(items):
                parts.append("<ul>" + "".join(f"<li>{inline(i)}</li>" for i in items) + "</ul>")
            case Grid(header, rows, numeric):
                kinds = [' class="number"' if name in numeric else "" for name in header]
                head = "".join(
                    f"<th{k}>{inline(n)}</th>" for k, n in zip(kinds, header, strict=True)
                )
                body = "\n".join(
                    "<tr>"
                    + "".join(f"<td{k}>{inline(c)}</td>" for k, c in zip(kinds, row, strict=True))
                    + "</tr>"
                    for row in rows
                )
                parts.append(f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>')
            case Picture(path, caption):
                parts.append(
                    f'<figure><img alt="{html.escape(caption)}" src="{data_uri(path)}">'
                    f"<figcaption>{inline(caption)}</figcaption></figure>"
                )
            case Contents():
                links = "".join(
                    f'<li><a href="#{anchor(text)}">{inline(plain(text))}</a></li>'
                    for text in sections(blocks)
                )
                parts.append(f"<ul>{links}</ul>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def sections(blocks: Sequence[Block]) -> list[str]:
    return [b.text for b in blocks if isinstance(b, Heading) and b.level == 2]


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def plain(heading: str) -> str:
    """A heading without the flag that names its table."""
    return re.sub(r" \(`.*`\)$", "", heading)


def inline(text: str) -> str:
    """Escapes text; `code` and **bold** are the only markup."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def data_uri(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
