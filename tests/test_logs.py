"""Numbers for people: speeds that were measured, and rows that are whole."""

import json
from types import SimpleNamespace

import pytest

from atkd_jax.runtime import logs


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock.now)
    return clock


class Printed:
    active = False

    def __init__(self):
        self.lines = []

    def print(self, text):
        self.lines.append(text)


def test_speed_and_time_left_are_right_from_the_first_step(clock):
    printed = Printed()
    progress = logs.Progress(printed, "student", total=1000, done=200, images_per_step=64)
    assert progress.images_per_second == 0
    clock.now += 80  # the first ten steps, and their compilation
    progress.advance(210, 1.5)
    assert progress.images_per_second == pytest.approx(10 * 64 / 80)
    assert printed.lines == ["student: step 210/1000, loss 1.500, 8 img/s, 105 min left"]
    clock.now += 61
    progress.advance(271, 1.0)  # from now on without compilation
    assert progress.images_per_second == pytest.approx(64)
    assert printed.lines[1] == "student: step 271/1000, loss 1.000, 64 img/s, 12 min left"
    clock.now += 61  # an evaluation, in which no step is done
    assert progress.images_per_second == pytest.approx(32)


ROW = {"step": 6, "epoch": 1, "train/loss": 1.0, "train/top1": 50.0, "test/top1": 60.0}


def test_the_log_is_written_anew_from_what_is_known(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("half a li")
    log = logs.Log(tmp_path, [ROW])
    log.epoch(ROW | {"step": 12, "epoch": 2})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [6, 12]
    said = capsys.readouterr().out
    assert said == "epoch 2: loss 1.0000, train top-1 50.00, test top-1 60.00\n"


@pytest.mark.parametrize("line", ['{"st', "[]", "null", '{"epoch": 2}', '{"step": "6"}', "\0\0"])
def test_a_damaged_log_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="metrics.jsonl is damaged .*; move it away") as told:
        logs.read_rows(tmp_path, 100)
    assert "\n" not in str(told.value)


def test_rows_after_the_checkpoint_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{json.dumps(ROW)}\n{{"step": 12}}\n')
    assert logs.read_rows(tmp_path, 6) == [ROW]
    assert logs.read_rows(tmp_path / "nowhere", 6) == []
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="metrics.jsonl is damaged"):
        logs.read_rows(tmp_path, 6)
