"""Result lines are trusted only when they are whole; what they say is counted right."""

import base64
import json
import re

import numpy as np
import pytest

from experiments import ledger, report, roc, runs
from experiments.cells import (
    Cell,
    fill,
    fill_table,
    known_hashes,
    paired,
    protocol_agreement,
    rank_agreement,
    seed_agreement,
)
from experiments.document import Grid, Heading, Picture, to_html, to_markdown
from experiments.measure import CURVES
from experiments.tables import TABLES, Row, Table

KD, AT = "digits:method=kd", "digits:method=at"


def line(text, seed, top1, role="student", protocol="quick", **more):
    run = runs.resolve(text, role, protocol, seed)
    teacher = {"model": "resnet20", "macs": 3, "top1": 99.0, "hash": "abc"}
    return {
        "hash": run.hash, "config": text, "role": role, "protocol": protocol, "seed": seed,
        "resolved": json.loads(json.dumps(run.config.to_dict())), "seconds": 10.0, "company": 1,
        "last": {"top1": top1}, "best": {"top1": top1 + 1}, "teacher": teacher,
        "areas": {"hard": 0.9, "macro": 0.99, "micro": 0.98}, "images_per_second": 5.0,
        "student": {"macs": 1, "params": 78042},
        "hardware": {"device": "cpu", "devices": 1, "cpus": 2},
        "history": {key: [top1] * run.config.epochs for key in CURVES},
        "roc": {}, "matrix": [], "class_names": [],
    } | more  # fmt: skip


def write(folder, *lines):
    for one in lines:
        ledger.append(folder / "digits.jsonl", one)
    return ledger.read(folder)


def test_a_line_that_a_killed_process_tore_is_named_and_the_next_one_is_whole(tmp_path):
    write(tmp_path, line(KD, 0, 90.0))
    path = tmp_path / "digits.jsonl"
    path.write_text(path.read_text() + '{"hash": "123", "conf')
    results, problems = write(tmp_path, line(KD, 1, 91.0))
    assert sorted(one["seed"] for one in results.values()) == [0, 1]
    assert len(problems) == 1 and problems[0].startswith("digits.jsonl:2 is left out")


@pytest.mark.parametrize(
    "text, message",
    [("[1]", "not a JSON object"), ("{}", "has no hash"), ("not json", "is left out")],
)
def test_what_is_no_result_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text + "\n")
    results, problems = ledger.read(tmp_path)
    assert results == {} and message in problems[0]


def test_a_line_without_all_epochs_is_named(tmp_path):
    short = line(KD, 0, 90.0)
    short["history"]["test/top1"].pop()
    write(tmp_path, short, line(KD, 1, 91.0))
    results, problems = ledger.read(tmp_path)
    assert [one["seed"] for one in results.values()] == [1]
    assert problems == ["digits.jsonl:1 is left out: its history is not one of 12 epochs"]


def test_an_edited_line_is_named(tmp_path):
    edited = line(KD, 0, 90.0)
    edited["resolved"]["optimizer"]["lr"] = 0.7
    results, problems = write(tmp_path, edited)
    assert results == {} and "was edited, or a default" in problems[0]


def test_results_of_one_run_that_disagree_are_named_and_not_averaged(tmp_path):
    results, problems = write(
        tmp_path, line(KD, 0, 90.0), line(KD, 0, 95.0), line(KD, 1, 91.0), line(KD, 1, 91.0)
    )
    assert len(problems) == 1
    assert "disagree (digits.jsonl:1 90.00, digits.jsonl:2 95.00)" in problems[0]
    cell = fill(Row(KD), "quick", results)
    assert dict(cell.values) == {1: 91.0}


def test_results_that_no_row_asks_for_are_named(tmp_path):
    gone = line(KD, 0, 90.0) | {"config": "digits:method=kdd"}
    changed = line(AT, 0, 90.0)
    changed["resolved"]["optimizer"]["lr"] = 0.7
    changed["hash"] = runs.name_of(changed["resolved"])
    unasked = line("digits:method=fsp", 0, 90.0)
    results, problems = write(tmp_path, gone, changed, unasked, line("digits:method=sp", 0, 90.0))
    assert problems == []
    known = known_hashes(results) - {gone["hash"]}
    told = {text.split(" ")[0]: text for text in ledger.strangers(results, known)}
    assert set(told) == {"digits:method=kdd", AT, "digits:method=fsp"}
    assert "no longer exists" in told["digits:method=kdd"]
    assert "optimizer.lr was 0.7, is 0.1" in told[AT]
    assert "no row asks" in told["digits:method=fsp"]


def test_a_row_whose_configuration_does_not_exist_is_named():
    table = Table("T", (Row("digits:method=kd"), Row("digits:method=kdd", published=90.0)))
    filled, problems = fill_table(table, {})
    assert [cell.n for cell in filled["quick"]] == [0, 0]
    assert len(problems) == 1 and "did you mean 'kd'" in problems[0]


def cell_of(values, published=None, protocol="paper", method="kd", epoch="last"):
    row = Row(f"cifar10:method={method},pair=r56_r20", published=published, epoch=epoch)
    return Cell(row, protocol, values, 1.0, {})


def test_mean_spread_and_verdict():
    cell = cell_of({0: 92.0, 1: 94.0, 2: 93.0}, 93.5)
    assert (cell.n, cell.mean, cell.sd) == (3, 93.0, 1.0)
    assert cell.difference == -0.5
    assert cell.verdict == "inside"
    assert cell_of({0: 92.0, 1: 94.0}, 90.0).verdict == "above"
    assert cell_of({0: 92.0, 1: 94.0}, 95.0).verdict == "below"
    assert cell_of({0: 92.0}, 92.0).verdict == "one seed"
    assert cell_of({0: 92.0, 1: 93.0}, 92.0, protocol="quick").verdict == "another protocol"
    assert cell_of({}, 92.0).verdict == ""
    assert cell_of({0: 92.0}).difference is None


def test_differences_are_paired_by_seed_with_students_interval():
    pair = paired({0: 91.0, 1: 93.0, 2: 95.0, 7: 1.0}, {0: 90.0, 1: 91.0, 2: 92.0, 8: 2.0})
    assert (pair.mean, pair.n) == (2.0, 3)
    assert pair.half == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5)  # t(0.975, 2), sd 1
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 3.0}, {0: 1.0}).half is None


def test_the_best_epoch_is_reported_where_the_paper_reports_it():
    results = {one["hash"]: one for one in [line(KD, 0, 90.0)]}
    assert fill(Row(KD, epoch="last"), "quick", results).mean == 90.0
    assert fill(Row(KD, epoch="best"), "quick", results).mean == 91.0
    assert fill(Row(KD, metric="hard"), "quick", results).mean == 90.0
    assert fill(Row(KD), "quick", {}).mean is None
    assert fill(Row(KD, metric="unseen"), "quick", results).n == 0
    seen = {one["hash"]: one for one in [line(KD, 0, 90.0, unseen=70.0)]}
    assert fill(Row(KD, metric="unseen"), "quick", seen).mean == 70.0


def test_rank_agreement_is_spearmans():
    cells = [cell_of({0: v}, p) for v, p in ((1.0, 60.0), (2.0, 61.0), (3.0, 63.0), (4.0, 62.0))]
    assert rank_agreement(cells) == (pytest.approx(0.8), 4)
    assert rank_agreement(cells[:3]) is None


def test_seeds_agree_when_they_order_the_methods_alike():
    same = [cell_of({0: v, 1: v + 1, 2: v - 1}) for v in (1.0, 2.0, 3.0, 4.0)]
    assert seed_agreement(same) == (pytest.approx(1.0), 4, 3)
    turned = [cell_of({0: v, 1: -v}) for v in (1.0, 2.0, 3.0, 4.0)]
    assert seed_agreement(turned) == (pytest.approx(-1.0), 4, 2)
    assert seed_agreement([cell_of({0: 1.0, 1: v}) for v in (1.0, 2.0, 3.0, 4.0)]) is None
    assert seed_agreement(same[:3]) is None
    assert seed_agreement([*same, cell_of({7: 1.0})]) is None


def test_a_short_protocol_is_held_against_a_longer_one():
    short = [cell_of({0: v}, protocol="quick") for v in (1.0, 2.0, 3.0, 4.0)]
    long = [cell_of({0: v}, protocol="longer") for v in (60.0, 61.0, 63.0, 62.0)]
    gap = cell_of({}, protocol="longer")
    assert protocol_agreement(short, long) == (pytest.approx(0.8), 4)
    assert protocol_agreement(short, [*long[:3], gap]) is None
    told = report.trust("quick", {"quick": short, "longer": long})
    assert len(told) == 1 and "is 0.80 over 4 students" in told[0]
    assert report.trust("longer", {"quick": short, "longer": long}) == []


def test_areas_from_hard_predictions_follow_from_the_accuracy():
    rng = np.random.RandomState(0)
    label = np.arange(200) % 5
    prob = rng.dirichlet(np.ones(5), 200) + 0.4 * np.eye(5)[label]
    prob /= prob.sum(1, keepdims=True)
    top1 = np.mean(prob.argmax(1) == label)
    found = roc.areas(prob, label)
    assert found["hard"] == pytest.approx((top1 + 1 - (1 - top1) / 4) / 2)
    assert found["hard"] < found["macro"] < 1
    # By definition: the chance that a positive is ranked above a negative.
    truth = np.eye(5)[label].ravel() == 1
    wins = prob.ravel()[truth][:, None] > prob.ravel()[~truth][None, :]
    assert found["micro"] == pytest.approx(wins.mean())
    perfect = roc.areas(np.eye(5)[label], label)
    assert perfect == {"hard": 1.0, "macro": 1.0, "micro": 1.0}
    drawn = roc.curves(prob, label)
    assert set(drawn["curves"]) == {"micro", "0", "1", "2", "3", "4"}
    for curve in drawn["curves"].values():
        assert np.all(np.diff(curve["tpr"]) >= 0)
        assert np.trapezoid(curve["tpr"], drawn["fpr"]) == pytest.approx(curve["area"], abs=0.02)


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
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_report_says_what_was_not_run_and_draws_what_was(tmp_path, monkeypatch):
    runs_done = [line(KD, s, 98.0 + s) for s in (0, 1)] + [line(AT, s, 97.0 + s) for s in (0, 1)]
    write(tmp_path / "results", *runs_done)
    with (tmp_path / "results" / "digits.jsonl").open("a") as file:
        file.write("broken\n")
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "TABLES", {n: TABLES[n] for n in ("digits", "rtk_table1")})
    monkeypatch.setattr("sys.argv", ["report", f"--results={tmp_path / 'results'}",
                                     f"--workdir={tmp_path}"])  # fmt: skip
    report.main()
    text = (tmp_path / "REPORT.md").read_text()
    assert "| kd | 98.50 ± 0.71 (2) |  | 78,042 | 20 | `digits:method=kd` |" in text
    assert "| at | 97.50 ± 0.71 (2) | -1.00 ± 0.00 | 78,042 | 20 | `digits:method=at` |" in text
    assert "| rtk | cifar10 | 93.40 | not run | `cifar10:method=rtk,pair=r56_r20` |" in text
    assert "digits.jsonl:5 is left out" in text
    assert text.index("| kd | 98.50") < text.index("| rtk | cifar10") < text.index("![")
    assert (tmp_path / "figures" / "digits-digits-quick-curves.svg").stat().st_size > 1000
    assert "data:image/svg+xml;base64," in (tmp_path / "report.html").read_text()
