"""Training on digits or an npz file works where TensorFlow is not installed."""

import subprocess
import sys

import pytest
from small_runs import PATIENCE, command, write_npz

WITHOUT = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # importing them now fails
from atkd_jax.main import cli
sys.argv = sys.argv[1:]
cli()
"""


@pytest.mark.slow
def test_training_needs_no_tensorflow(tmp_path):
    npz = write_npz(tmp_path / "data.npz")
    _, _, *arguments = command(npz, tmp_path / "run", "--config.epochs=1")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
