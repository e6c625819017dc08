"""Result lines are trusted only when they are whole and agree."""

import resource

import pytest
from result_lines import AT, KD, line, write

from experiments.queue import jobs
from experiments.results import store
from experiments.results.statistics import fill, known_hashes
from experiments.tables.rows import Row


def test_a_line_that_a_killed_process_tore_is_named_and_the_next_one_is_whole(tmp_path):
    write(tmp_path, line(KD, 0, 90.0))
    path = tmp_path / "digits.jsonl"
    path.write_text(path.read_text() + '{"hash": "123", "conf')
    store.append(path, line(KD, 1, 91.0))
    results, problems = store.read(tmp_path)
    assert sorted(one["seed"] for one in results.values()) == [0, 1]
    assert len(problems) == 1 and problems[0].startswith("digits.jsonl:2 is left out")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "not a JSON object"),
        ("{}", "has no hash"),
        ("not json", "not whole JSON"),
        ("\xff", "it is not UTF-8"),
        ("[" * 10**5, "not whole JSON"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_bytes(text.encode("latin1") + b"\n")
    results, problems = store.read(tmp_path)
    assert results == {} and message in problems[0]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("resolved", {}, "it has no resolved.epochs, resolved.seed"),
        ("resolved", [], "its resolved is a list, not an object"),
        ("last", {}, "it has no last.epoch, last.top1, last.top5, last.loss"),
        ("history", None, "its history is null, not an object"),
        ("seconds", float("nan"), "its seconds is nan, not a number from 0 to 1e+12"),
        ("seconds", -1.0, "its seconds is -1.0, not a number from 0 to 1e+12"),
        ("seed", True, "its seed is True, not a whole number"),
        ("company", 10**30, "its company is a huge number, not a whole number"),
        ("role", "master", "its role is 'master', not one of student, teacher"),
        ("teacher", None, "only one of its teacher and its configuration's terms"),
        ("matrix", [[1.0], [1.0, 2.0]], "rows of different lengths"),
    ],
)
def test_a_line_with_a_damaged_part_is_named(tmp_path, key, value, message):
    results, problems = write(tmp_path, line(KD, 0, 90.0) | {key: value}, line(KD, 1, 91.0))
    assert [one["seed"] for one in results.values()] == [1]
    assert problems[0].startswith("digits.jsonl:1 is left out") and message in problems[0]


def test_a_line_is_judged_as_it_will_be_read(tmp_path):
    store.append(tmp_path / "digits.jsonl", line(KD, 0, 90.0, class_names=("0", "1")))
    ((_, read),) = store.lines(tmp_path)[0].popitem()[1]
    assert read["class_names"] == ["0", "1"]


def test_a_line_that_is_no_result_is_not_written(tmp_path):
    path = tmp_path / "digits.jsonl"
    store.append(path, line(KD, 0, 90.0))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="its seconds is inf, not a number from 0"):
        store.append(path, line(KD, 1, 90.0, seconds=float("inf")))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="it has no hash, config"):
        store.append(tmp_path / "new" / "digits.jsonl", {})
    assert not (tmp_path / "new").exists()


def test_a_disk_that_takes_half_of_a_line_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "digits.jsonl"
    store.append(path, line(KD, 0, 90.0))
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limit[1]))
    try:
        with pytest.raises(OSError, match=r"digits\.jsonl cannot be written"):
            store.append(path, line(KD, 1, 90.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path):
    write(tmp_path, line(KD, 0, 90.0))
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / "c.jsonl").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not read")
    results, problems = store.read(tmp_path)
    assert len(results) == 1
    assert problems == [
        "a.jsonl is left out: Is a directory",
        "b.jsonl is left out: No such file or directory",
    ]


def test_a_line_without_all_epochs_is_named(tmp_path):
    short = line(KD, 0, 90.0)
    short["history"]["test/top1"].pop()
    write(tmp_path, short, line(KD, 1, 91.0))
    results, problems = store.read(tmp_path)
    assert [one["seed"] for one in results.values()] == [1]
    assert problems == [
        "digits.jsonl:1 is left out: its history is not one of 12 tests in 12 epochs"
    ]


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
    changed["hash"] = jobs.name_of(changed["resolved"])
    unasked = line("digits:method=fsp", 0, 90.0)
    results, problems = write(tmp_path, gone, changed, unasked, line("digits:method=sp", 0, 90.0))
    assert problems == []
    known = known_hashes(results) - {gone["hash"]}
    told = {text.split(" ")[0]: text for text in store.unreferenced(results, known)}
    assert set(told) == {"digits:method=kdd", AT, "digits:method=fsp"}
    assert "no longer exists" in told["digits:method=kdd"]
    assert "optimizer.lr was 0.7, is 0.1" in told[AT]
    assert "no row asks" in told["digits:method=fsp"]


def test_teachers_that_were_trained_again_are_named_if_they_differ(tmp_path):
    again = line(AT, 0, 90.0)
    again["teacher"]["hash"] = "def"
    results, _ = write(tmp_path, line(KD, 0, 90.0), again)
    (told,) = store.differing_teachers(results)
    assert "trained 2 times with different results (abc, def)" in told
    assert store.differing_teachers(write(tmp_path / "same", line(KD, 0, 90.0))[0]) == []
