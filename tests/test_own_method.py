"""A run with a method from the user's own file."""

import json
import shutil
import sys

import numpy as np
import pytest
from small_runs import saved_steps, small_config

from atkd_jax.errors import UserError
from atkd_jax.runtime.run_files import read_summary
from atkd_jax.training import settings
from atkd_jax.training.loop import train_and_evaluate

OWN = """
import dataclasses
import jax.numpy as jnp
from atkd_jax import Extras, LossOut, Method

@dataclasses.dataclass(frozen=True)
class Mine(Method):
    power: float = 2.0

    def init(self, rng, t, s, data):
        return Extras({"scale": jnp.ones(())}, {"calls": jnp.zeros(())})

    def loss(self, extras, t, s, batch, ctx):
        difference = jnp.abs(extras.params["scale"] * s.logits - t.logits)
        state = {"calls": extras.state["calls"] + 1}
        return LossOut((difference**self.power).mean(), state, {"classes": difference.mean(axis=0)})
"""


@pytest.mark.slow
def test_a_run_with_a_method_of_the_users_own_is_a_run(npz, tmp_path, monkeypatch, capsys):
    """It trains, logs, resumes, and exports; its name is a string wherever it is written."""
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def config():
        config = small_config(npz)
        config.epochs, config.teacher.epochs = 2, 1
        config.optimizer.lr = 0.01
        settings.add_term(config, "own_method:Mine", "weight")
        config.terms["own_method:Mine"].weight = 0.01
        return config

    name, workdir = "own_method:Mine", tmp_path / "run"
    result = train_and_evaluate(config(), workdir)
    # As if it had been killed in the second epoch.
    shutil.rmtree(workdir / "checkpoints" / str(max(saved_steps(workdir))))
    (workdir / "summary.json").unlink()
    assert train_and_evaluate(config(), workdir)["last"] == result["last"]
    assert "going on from step 6" in capsys.readouterr().out
    sys.modules.pop("own_method")
    assert read_summary(workdir)["config"]["terms"] == {name: {"power": 2.0, "weight": 0.01}}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row[f"train/{name}"]) for row in rows) and len(rows) == 2
    [first, _] = sorted((workdir / "epochs").iterdir())
    assert np.load(first)[f"{name}.classes"].shape == (3,)
    assert (workdir / "export").is_dir()

    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    with pytest.raises(UserError, match="there is no module own_method"):
        train_and_evaluate(config(), workdir)
