"""Result lines are trusted only when they are whole and agree."""

import pytest
from result_lines import AT, KD, line, write

from experiments import ledger, runs
from experiments.cells import fill, known_hashes
from experiments.tables import Row


def test_a_line_that_a_killed_process_tore_is_named_and_the_next_one_is_whole(tmp_path):
    write(tmp_path, line(KD, 0, 90.0))
    path = tmp_path / "digits.jsonl"
    path.write_text(path.read_text() + '{"hash": "123", "conf')
    results, problems = write(tmp_path, line(KD, 1, 91.0))
    assert sorted(one["seed"] for one in results.values()) == [0, 1]
    assert len(problems) == 1 and problems[0].startswith("digits.jsonl:2 is left out")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "not a JSON object"),
        ("{}", "has no hash"),
        ("not json", "not whole JSON"),
        ("\xff", "is left out"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_bytes(text.encode("latin1") + b"\n")
    results, problems = ledger.read(tmp_path)
    assert results == {} and message in problems[0]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("resolved", {}, "it has no 'epochs'"),
        ("resolved", [], "is left out"),
        ("last", {}, "its last has no top1"),
        ("history", None, "is left out"),
    ],
)
def test_a_line_with_a_damaged_part_is_named(tmp_path, key, value, message):
    results, problems = write(tmp_path, line(KD, 0, 90.0) | {key: value}, line(KD, 1, 91.0))
    assert [one["seed"] for one in results.values()] == [1]
    assert problems[0].startswith("digits.jsonl:1 is left out") and message in problems[0]


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


def test_teachers_that_were_trained_again_are_named_if_they_differ(tmp_path):
    again = line(AT, 0, 90.0)
    again["teacher"] = again["teacher"] | {"hash": "def"}
    results, _ = write(tmp_path, line(KD, 0, 90.0), again)
    (told,) = ledger.taught_differently(results)
    assert "trained 2 times with different results (abc, def)" in told
    assert ledger.taught_differently(write(tmp_path / "same", line(KD, 0, 90.0))[0]) == []
