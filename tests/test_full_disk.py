"""A disk that is full at any write costs one line, and the same command then ends in the same bits.

FULL_DISK=all lets a real command meet it at every single call, which takes hours; FULL_DISK=N at
every N-th.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SAID = re.compile(r"error: |warning: |epoch \d+: |going on from step \d+$|top-1 ")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """full_disk.c, compiled."""
    if not sys.platform.startswith("linux"):
        pytest.skip("LD_PRELOAD and the calls that it replaces are Linux's")
    if not (cc := shutil.which("cc")):
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("library") / "full_disk.so"
    source = HERE / "full_disk.c"
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def walk(library, folder, mode, stride=1):
    """What tests/full_disk.py tells, and what else was said."""
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    done = subprocess.run(
        [sys.executable, HERE / "full_disk.py", mode, folder, str(stride)],
        cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def is_one_line(output):
    """Nothing but a run's own lines, of which one is the error, the last."""
    lines = [line for line in output.splitlines() if line and not line.startswith("warning: ")]
    errors = [line for line in lines if line.startswith("error: ")]
    return all(map(SAID.match, lines)) and errors == lines[-1:] and "No space left" in lines[-1]


@pytest.mark.slow
def test_every_kind_of_write_may_fail(library, tmp_path):
    """Every seventh call of what a run writes, without the run."""
    found, said = walk(library, tmp_path, "layer", 7)
    assert len(found) > 40 and not said
    for row in found:
        assert row["same"], row
        if row["call"].startswith("open /epochs/"):  # Python's zipfile tries a second time
            continue
        assert "No space left on device" in row["error"] and "\n" not in row["error"], row
    calls = {row["call"].split()[0] for row in found}
    assert calls == {"open", "write", "mkdir", "rename", "fsync"}
    files = {part for row in found for part in ("checkpoints", "export") if part in row["call"]}
    assert files == {"checkpoints", "export"}


@pytest.mark.slow
def test_a_command_ends_at_once_and_goes_on_when_there_is_room(library, tmp_path):
    *failures, last = walk(library, tmp_path, "places")[0]
    assert len(failures) > 8
    for row in failures:
        assert row["call"] and row["code"] == 1 and is_one_line(row["output"]), row
    assert last["code"] == 0 and not last["unlike"], last


@pytest.mark.skipif("FULL_DISK" not in os.environ, reason="takes hours; set FULL_DISK=all")
def test_a_command_may_meet_it_at_every_call(library, tmp_path):
    stride = os.environ["FULL_DISK"]
    found, _ = walk(library, tmp_path, "all", 1 if stride == "all" else int(stride))
    assert found
    for row in found:
        assert row["code"] == 1 and is_one_line(row["output"]), row
        assert row["again"] == 0 and not row["unlike"], row
