"""Every damage to a line leaves it out, or is one of those that change nothing anybody reads."""

import itertools
import json
import re

import pytest

from experiments.report import generate
from experiments.results import statistics, store
from experiments.tables.rows import TABLES

GONE = object()
DAMAGES = {
    "missing": GONE,
    "null": None,
    "true": True,
    "zero": 0,
    "half": 0.5,
    "negative": -1,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
    "beyond float32": 1e300,
    "empty text": "",
    "text": "x",
    "two lines": "x\ny",
    "empty list": [],
    "list": [1],
    "empty object": {},
    "object": {"x": 1},
}
NUMBERS = (
    r"(last|best)\.top5|areas\.\w+|unseen|seconds|images_per_second|teacher\.top1|"
    r"history\.(train/loss|test/\w+)\.\d+|roc\.fpr\.\d+|roc\.curves\.\w+\.(tpr\.\d+|area)|"
    r"matrix\.\d+\.\d+|resolved\.teacher\.expect_top1"
)
PLACES = (
    r"resolved\.(checkpoint(\.\w+)?|data\.data_dir|dry_run|parallel|steps_per_dispatch|topology)"
)
# What may be wrong without being found: path, damages, and why nothing can come of it.
ACCEPTED = [
    (NUMBERS, "zero|half", "a number in its range that nothing else in the line contradicts"),
    (r"history\.train/loss\.\d+|matrix\.\d+\.\d+", "negative", "such a number may be negative"),
    (r"config|(student|teacher)\.hash|hardware\.device|versions\.\S+|commit", "text", "a name"),
    (r"commit", "empty text", "there is none without git"),
    (r"class_names\.\d+", "text|empty text|two lines", "a folder may be called anything"),
    (r"class_names\.\d+", "missing", "those that the curves name are still there"),
    (r"hardware\.cpus", "null", "the system did not know"),
    (r"versions", "empty object", "a package that is absent is left out"),
    (r"versions\.\S+", "missing", "a package that is absent is left out"),
    (r"roc(\.curves)?", "empty object", "nothing is drawn"),
    (r"roc\.curves\.\w+", "missing", "it is not drawn"),
    (r"matrix", "empty list", "nothing is drawn"),
    (r"matrix\.\d+", "missing", "the rest has rows of one length"),
    # The hash is that of the configuration, so these mean the same run.
    (r"resolved\..*", "missing|empty object", "what is as in configs/common.py may be left out"),
    (r"resolved\..*", "true|zero", "1 and true, and 0.0, 0 and false are equal"),
    (PLACES, ".*", "where it ran is not what it computed"),
]


def committed():
    """The lines that hold the most, of students and teachers, taught or not."""
    texts = (t for p in store.RESULTS.glob("*.jsonl") for t in p.read_text().splitlines())
    lines = map(json.loads, sorted(texts, key=len))
    return {(line["role"], "taught" if line["teacher"] else "alone"): line for line in lines}


def places(value, at=()):
    """Paths of all fields; of lists the first item and the last."""
    if at:
        yield at
    if isinstance(value, dict):
        items = value.items()
    else:
        items = enumerate(value) if isinstance(value, list) else ()
        items = [item for item in items if item[0] in (0, len(value) - 1)]
    for key, inner in items:
        yield from places(inner, (*at, key))


def damaged(value, at, damage):
    """A copy in which one field has another value or is gone."""
    copy, (key, *rest) = value.copy(), at
    if rest:
        copy[key] = damaged(value[key], rest, damage)
    elif damage is GONE:
        del copy[key]
    else:
        copy[key] = damage
    return copy


def accepted(line):
    """(path, damage) of every damage that the reader takes; there has to be a reason, above, for
    each of them, and one line for each of the others."""
    for at, (name, damage) in itertools.product(places(line), DAMAGES.items()):
        path, bad = ".".join(map(str, at)), damaged(line, at, damage)
        if json.dumps(bad) == json.dumps(line):
            continue
        try:
            store.parse(json.dumps(bad).encode())
        except ValueError as error:
            assert re.fullmatch(".{5,300}", str(error)), f"{path} {name}: {error!r}"
            continue
        assert any(re.fullmatch(where, path) and re.fullmatch(what, name)
                   for where, what, _ in ACCEPTED), f"{path} {name} is accepted"  # fmt: skip
        yield at, damage


@pytest.mark.slow
@pytest.mark.parametrize("kind", committed())
def test_a_damaged_field_costs_the_line_or_nothing(kind):
    line = committed()[kind]
    assert store.parse(json.dumps(line).encode()) == line
    found = list(accepted(line))
    assert (("hardware", "cpus"), None) in found and (("seconds",), None) not in found


@pytest.mark.parametrize("kind", committed())
def test_a_key_that_nobody_knows_costs_nothing_and_stops_nobody(kind):
    line = committed()[kind]
    for at, value in itertools.product(({}, *places(line)), (None, 1, "x", [], {})):
        at = tuple(at)
        node = line
        for key in at:
            node = node[key]
        if isinstance(node, dict):
            try:
                store.parse(json.dumps(damaged(line, (*at, "unknown"), value)).encode())
            except ValueError as error:
                assert re.fullmatch(".{5,300}", str(error)), (at, value)


@pytest.mark.slow
def test_what_the_reader_accepts_makes_a_report(tmp_path, monkeypatch):
    """Every damage that the reader lets pass, spread over a hundred lines."""
    lines = map(json.loads, (store.RESULTS / "digits.jsonl").read_text().splitlines())
    lines = sorted(lines, key=lambda line: -len(line["roc"]) - len(line["matrix"]))
    found, left = list(accepted(lines[0])), []
    for i, line in enumerate(lines):
        for at, damage in found[i :: len(lines)]:
            try:
                bad = damaged(line, at, damage)
                store.parse(json.dumps(bad).encode())
                line = bad
            except (ValueError, LookupError):  # not in this line, or not together with another
                left.append(at)
        lines[i] = line
    assert len(left) < len(found) / 2
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for module in (generate, statistics):
        monkeypatch.setattr(module, "TABLES", {"digits": TABLES["digits"]})
    args = ["report", f"--results={tmp_path}", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", args)
    generate.main("Test.")
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "is left out" not in text and "is not drawn" not in text
    assert "| kd | 9" in text
