"""What result lines say is counted right and told in full."""

import base64
import re
from xml.etree import ElementTree

import pytest
from result_lines import AT, KD, line, write

from experiments.report import claims, figures, generate, summary, text
from experiments.report.document import Grid, Heading, Picture, to_html, to_markdown
from experiments.results import statistics
from experiments.results.statistics import Cell, protocol_agreement
from experiments.tables.rows import TABLES, Row, Table


def cell_of(values, published=None, protocol="paper", method="kd", epoch="last"):
    row = Row(f"cifar10:method={method},pair=r56_r20", published=published, epoch=epoch)
    return Cell(row, protocol, values, 1.0, {})


def test_methods_are_ranked_where_their_numbers_are_comparable():
    """Each data set in the reverse of the published order: not saved by the gap between them."""
    cells = [
        Cell(Row(f"{data}:method={m}", published=base + i), "paper", {0: base - i}, 1.0, {})
        for data, base in (("cifar10", 90.0), ("cifar100", 70.0))
        for i, m in enumerate(("kd", "at", "sp", "cc"))
    ]
    told = text.trust("paper", {"paper": cells})
    assert len(told) == 2 and all("is -1.00 over 4 students" in text for text in told)


def test_a_short_protocol_is_held_against_a_longer_one():
    short = [cell_of({0: v}, protocol="quick") for v in (1.0, 2.0, 3.0, 4.0)]
    long = [cell_of({0: v}, protocol="longer") for v in (60.0, 61.0, 63.0, 62.0)]
    gap = cell_of({}, protocol="longer")
    assert protocol_agreement(short, long) == (pytest.approx(0.8), 4)
    assert protocol_agreement(short, [*long[:3], gap]) is None
    told = text.trust("quick", {"quick": short, "longer": long})
    assert len(told) == 1 and "is 0.80 over 4 students" in told[0]
    assert text.trust("longer", {"quick": short, "longer": long}) == []


def test_a_document_is_whole_markdown_and_one_html_file(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    grid = Grid(["a", "b"], [["x|y", "`1<2`"]], ["b"])
    blocks = [Heading("Title", 1), grid, Picture(tmp_path / "a.svg", "a <figure>")]
    text = to_markdown(blocks, tmp_path)
    assert "| --- | ---: |\n| x\\|y | `1<2` |" in text
    assert "![a <figure>](a.svg)" in text
    page = to_html(blocks, "Title")
    assert "<code>1&lt;2</code>" in page and "a &lt;figure&gt;" in page
    assert base64.b64encode(b"<svg/>").decode() in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.fixture
def make_report(tmp_path, monkeypatch):
    """Makes a report of some tables on what lies in tmp_path/results, and returns its text."""

    def make(tables, *flags):
        for module in (generate, statistics):
            monkeypatch.setattr(module, "TABLES", tables)
        folders = (
            f"--results={tmp_path / 'results'}",
            f"--workdir={tmp_path}",
            f"--studies={tmp_path}",
            f"--out={tmp_path}",
        )
        monkeypatch.setattr("sys.argv", ["report", *folders, *flags])
        generate.main("Test.")
        return (tmp_path / "REPORT.md").read_text(encoding="utf-8")

    return make


def test_the_report_says_what_was_not_run_and_draws_what_was(tmp_path, make_report):
    runs_done = [line(KD, s, 98.0 + s) for s in (0, 1)] + [line(AT, s, 97.0 + s) for s in (0, 1)]
    write(tmp_path / "results", *runs_done)
    with (tmp_path / "results" / "digits.jsonl").open("a") as file:
        file.write("broken\n")
    gone = Table("Gone", (Row("digits:method=kdd"),))
    tables = {"digits": TABLES["digits"], "rtk_table1": TABLES["rtk_table1"], "gone": gone}
    text = make_report(tables)
    assert "| kd | 98.50 ± 0.71 (2) |  | 78,042 | 20 | `digits:method=kd` |" in text
    assert "| at | 97.50 ± 0.71 (2) | -1.00 ± 0.00 | 78,042 | 20 | `digits:method=at` |" in text
    assert "Not run: teacher, none, fitnet, rkd," in text
    unrun = "| rtk_table1 | RTK, Table 1: ResNet-56 → ResNet-20 | 18 | "
    assert "digits.jsonl:5 is left out" in text
    assert "gone: kdd of digits: digits:method=kdd: unknown method 'kdd'" in text
    assert text.index("| kd | 98.50") < text.index("![") < text.index(unrun)
    assert "- [Tables without results](#tables-without-results)" in text
    assert (tmp_path / "figures" / "digits-digits-quick-curves.svg").stat().st_size > 1000
    assert "data:image/svg+xml;base64," in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.rglob("*draft*"))


def test_few_images_are_a_matrix_of_gains_and_a_figure(tmp_path, make_report):
    """By number of images; claims count the settings in which AT-KD is reliably better."""
    lines = [
        line(f"few_images:method={method},images={images},steps=781", seed, top1 + seed)
        for method, images, top1 in (("kd", 500, 40.0), ("atkd", 500, 45.0), ("kd", 2500, 50.0),
                                     ("atkd", 2500, 49.0), ("none", 2500, 48.0))
        for seed in (0, 1)
    ]  # fmt: skip
    write(tmp_path / "results", *lines)
    text = make_report({"few_images": TABLES["few_images"]})
    assert "(batch 64, onecycle, peak rate 0.1, float32)" in text
    assert "| top-1, 781 steps; images: | 500 | 2,500 |" in text
    assert "| kd | 40.50 ± 0.71 (2) | 50.50 ± 0.71 (2) |" in text
    assert "| − KD, 781 steps; images: | 500 | 2,500 |" in text
    assert "| atkd | +5.00 ± 0.00 | -1.00 ± 0.00 |" in text
    assert (
        "Settings measured here: 2, of them 2 with several seeds. Of these, AT-KD is reliably"
        " better than KD in 1 and reliably worse in 1" in text
    )
    assert "the largest of these gains is +5.00 ± 0.00 (cifar10, 500 images, 781 steps, " in text
    assert [p.name for p in (tmp_path / "figures").iterdir()] == [
        "few_images-few_images-quick-images.svg"
    ]


def student_of(method, clean, corrupt, seed, **more):
    top1 = {"clean": clean, "jpeg 1": corrupt - 1, "jpeg 2": corrupt + 1}
    return {"method": method, "images": 500, "steps": 781, "seed": seed, "top1": top1} | more


@pytest.mark.parametrize(
    "beyond, verdict",
    [
        ((0.0, 0.0, 0.0), "not distinguishable"),
        ((1.0, -2.0, 1.0), "not distinguishable"),
        ((9.0, 9.1, 9.2), "better"),
        ((-9.0, -9.1, -9.2), "worse"),
    ],
)
def test_students_generalise_better_above_the_line_of_kd(beyond, verdict):
    """AT-KD's are more accurate on corrupted images anyway; other methods do not matter."""
    rows = [student_of("none", 90, 1, 0)]
    for seed in range(6):
        scatter = (0.1, -0.2, 0.1)[seed % 3]
        rows.append(student_of("kd", 60 + seed, 30 + seed / 2 + scatter, seed))
    for seed, more in enumerate(beyond):
        rows.append(student_of("atkd", 70 + seed, 35 + seed / 2 + more, seed))
    found = claims.generalisation(rows)
    mean = sum(beyond) / 3
    assert f"AT-KD's students are {5 + mean:+.2f} ± " in found and "above KD's (3 pairs)" in found
    assert f"the difference is {mean:+.2f} ± " in found.replace("-0.00", "+0.00")
    assert "by the line through 6 students of KD" in found and found.endswith(f": {verdict}.")


def test_a_claim_without_its_study_is_open(tmp_path):
    apart = [student_of("atkd", 70, 30, 0), student_of("kd", 70, 30, 1)]
    assert claims.generalisation(apart).startswith("Measured on 0 pairs of students, too few")
    two = [student_of(method, 70 + seed, 30, seed) for method in ("kd", "atkd") for seed in (0, 1)]
    assert claims.generalisation(two).startswith("Measured on 2 pairs of students, too few")
    assert claims.size([]).startswith("Not measured yet")
    [(_, accuracy), *_] = claims.claims([], {}, tmp_path)
    assert accuracy == "AT-KD has not been compared with KD yet."


def test_int8_is_compared_on_students_that_both_methods_have():
    size = {"bytes": {"tflite": 307_200, "tflite_int8": 102_400}}
    drops = {"kd": (0.1, 0.3), "atkd": (0.5, 0.7, 9.0)}
    rows = [
        student_of(method, 0, 0, seed, drop={"tflite": 0.0, "tflite_int8": drop}, **size)
        for method, some in drops.items()
        for seed, drop in enumerate(some)
    ]
    assert (
        "of 300 KiB, of 100 KiB in int8, which costs AT-KD's students 0.60 points of top-1 and"
        " KD's 0.20 (means over 2 pairs)" in claims.size(rows)
    )


TWO = {"digits": TABLES["digits"], "small": TABLES["cifar10_small"]}
NO_DIGITS = f"| digits | {TABLES['digits'].title} | 20 |  | `digits:method=kd` | "
SMALL = "cifar10:method=kd,pair=r20_r8,teacher=akamaster"


@pytest.mark.parametrize(
    "lines, cells",
    [
        (
            [],
            f"{NO_DIGITS} |",
        ),
        (
            [line(SMALL, 0, 60.0)],
            NO_DIGITS,
        ),
        ([line(KD, 3, 98.0)], "| kd | 98.00 (1) | 78,042 | 10 | `digits:method=kd` |"),
        ([line(KD, 0, 98.0, "teacher")], "Not run: none, kd, fitnet,"),
    ],
)
def test_a_report_of_few_results_is_whole(tmp_path, make_report, lines, cells):
    write(tmp_path / "results", *lines)
    (tmp_path / "results" / "digits.jsonl").rename(tmp_path / "results" / "any name.jsonl")
    (tmp_path / "results" / "notes.md").write_text("not read")
    text = make_report(TWO)
    assert cells in text and "left out" not in text


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--results={}/none", "argument --results: {}/none is no folder"),
        ("--results={}/file", "argument --results: {}/file is no folder"),
        ("--out={}/file", "argument --out: {}/file is no folder"),
        ("--out={}/file/report", "argument --out: {}/file is no folder"),
        ("--workdir={}/file", "argument --workdir: {}/file is no folder"),
        ("--weights={}/none", "argument --weights: {}/none is no folder"),
        ("--out=gs://bucket/x", "argument --out: gs://bucket/x is a bucket; give a folder"),
        ("--output=x", "unrecognized arguments: --output=x"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line_and_writes_nothing(
    tmp_path, make_report, capsys, flag, message
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "results").mkdir()
    with pytest.raises(SystemExit) as ended:
        make_report(TWO, flag.format(tmp_path))
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.startswith(f"error: {message.format(tmp_path)}") and told.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "results"]


def test_a_figure_that_fails_is_named_and_the_one_drawn_before_is_kept(
    tmp_path, make_report, monkeypatch
):
    write(tmp_path / "results", line(KD, 0, 98.0))
    drawn = tmp_path / "figures" / "digits-digits-quick-curves.svg"
    drawn.parent.mkdir()
    drawn.write_text("before")

    def fail(*_, **__):
        raise ValueError("no such glyph")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    text = make_report({"digits": TABLES["digits"]})
    assert "digits-digits-quick-curves.svg is not drawn: no such glyph" in text
    assert "| kd | 98.00 (1) |" in text and drawn.read_text() == "before"


@pytest.mark.parametrize(
    "name", ["$_$", "50%_$$", r"\frac", "a\nb", "\udcff", "\0", "-->", "", "_x"]
)
def test_a_class_name_is_drawn_as_it_is(tmp_path, name):
    tpr = {"tpr": [0.0, 1.0], "area": 0.5}
    curves = {"fpr": [0.0, 1.0], "curves": {"micro": tpr, "0": tpr, "1": tpr}}
    taught = line(KD, 0, 98.0, class_names=[name, "$x$"], roc=curves)
    drawn = figures.draw_roc(
        [Cell(Row(KD), "quick", {0: 98.0}, 1.0, {0: taught})], tmp_path / "a.svg"
    )
    root = ElementTree.parse(drawn).getroot()
    assert root.tag.endswith("svg")
    if name.isalnum() or name.startswith(("$", "5")):  # text is drawn as paths, under a comment
        assert f"<!-- class {name} (area 0.5000) -->" in drawn.read_text()


def test_a_short_table_is_held_against_the_papers_order():
    order = ("none", "fitnet", "kd", "at")  # RTK's Table 1 has at before kd

    def cells_of(table):
        for row in TABLES[table].rows:
            values = {0: float(order.index(row.method))} if row.method in order else {}
            yield Cell(row, "paper", values, 1.0, {})

    filled = {
        "rtk_table1": {"paper": list(cells_of("rtk_table1"))},
        "cifar10_small": {"quick": list(cells_of("cifar10_small"))},
    }
    (told,) = summary.forecasts(filled)
    assert "quick: rank correlation 0.80 over 4 students" in told
    assert summary.forecasts({}) == []
