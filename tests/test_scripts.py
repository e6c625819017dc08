"""The shell around it: a pod whose one host is this machine, reached by a gcloud of our own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import PATIENCE

REPOSITORY = Path(__file__).parent.parent

GCLOUD = """#!/usr/bin/env bash
echo "$3 $4" >> "$HOME/calls"
for argument; do
  case $argument in --command=*) exec bash -c "${argument#--command=}" ;; esac
done
"""

# Stands for atkd_jax.main: tells what it was given, and ends by SIGTERM as a training does.
TRAINING = """
import signal, sys, time

def save(*_):
    print("saved at step 7", flush=True)
    sys.exit()

signal.signal(signal.SIGTERM, save)
print(sys.argv[1:], flush=True)
time.sleep(10**6)
"""


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """Runs scripts/tpu_pod.sh of tmp_path/repository; the home of its one host is tmp_path."""
    if not shutil.which("pkill"):
        pytest.skip("needs pkill")
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    script = tmp_path / "repository" / "scripts" / "tpu_pod.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts" / "tpu_pod.sh", script)
    package = tmp_path / "atkd" / "atkd_jax"
    package.mkdir(parents=True)
    (package / "main.py").write_text(TRAINING)
    python = tmp_path / "atkd" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    settings = {"HOME": str(tmp_path), "TPU_NAME": "t", "ZONE": "z", "PROJECT_ID": "p"}
    settings["PATH"] = f"{gcloud.parent}:{os.environ['PATH']}"
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        # A training that holds on to the connection would be waited for.
        return subprocess.run(
            [script, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    yield run
    run("stop")


def test_a_training_on_a_pod_outlives_its_connection_and_is_stopped_by_name(pod, tmp_path):
    assert pod("train", "--config=a b.py", "--workdir=$HOME").returncode == 0
    log = tmp_path / "atkd" / "run.log"
    deadline = time.monotonic() + PATIENCE
    while not log.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text() == "['--config=a b.py', '--workdir=$HOME']\n"
    again = pod("train")
    assert again.returncode == 1
    assert "running here already" in again.stderr
    assert pod("stop").stdout == "saved at step 7\n"
    assert pod("stop").stdout == "no training is running here\n"


def test_what_is_not_committed_is_not_sent_to_a_pod_in_silence(pod, tmp_path):
    git = ["git", "-C", tmp_path / "repository", "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    with (tmp_path / "repository" / "scripts" / "tpu_pod.sh").open("a") as file:
        file.write("# edited\n")
    done = pod("setup", "1.2.3.4:/share")
    assert done.returncode == 1
    assert done.stderr.startswith("error: setup copies the last commit; commit your changes")
    assert not (tmp_path / "calls").exists()


def test_make_clean_keeps_trainings(tmp_path):
    for name in (".venv", ".cache", "runs/demo", "runs/mv2/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    # VENV named: where it is exported, clean would delete the environment that runs this test.
    make = ["make", "-s", "-C", tmp_path, "-f", REPOSITORY / "Makefile", "VENV=.venv", "clean"]
    subprocess.run(make, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mv2"]
    assert (tmp_path / "runs" / "mv2" / "checkpoints").exists()
