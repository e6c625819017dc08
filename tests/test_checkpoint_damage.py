"""Every file of a checkpoint, damaged or lost in turn."""

import contextlib
import functools
import gc
import shutil

import jax
import numpy as np
import pytest
from small_runs import flip, same_bits

from atkd_jax.runtime import checkpoint


@pytest.mark.filterwarnings("error")  # nothing is told but by the error itself
def test_no_file_of_a_checkpoint_can_be_changed_or_lost_unnoticed(tmp_path):
    """Every file in turn: either nothing was lost with it, or it is an error that names it."""
    rng = np.random.RandomState(0)
    tree = {"w": jax.numpy.asarray(rng.rand(300, 9).astype(np.float32)), "n": jax.numpy.int32(3)}
    meta = {"sums": {"loss": 1.25}, "history": [1]}
    good, bad = tmp_path / "good", tmp_path / "bad"
    with contextlib.closing(checkpoint.Checkpoints(good)) as checkpoints:
        checkpoints.save(5, tree, meta)
    like = jax.eval_shape(lambda: tree)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    noticed = 0
    for path in [path.relative_to(good) for path in good.rglob("*") if path.is_file()]:
        for damage in (lambda p: p.unlink(), flip, functools.partial(flip, place=0.8)):
            shutil.copytree(good, bad)
            damage(bad / path)
            with contextlib.closing(checkpoint.Checkpoints(bad)) as checkpoints:
                assert checkpoints.latest() == 5
                try:
                    found, found_meta = checkpoints.restore(5, like, here)
                except ValueError as error:
                    assert f"checkpoint {bad}/5 is damaged" in str(error)
                    noticed += 1
                else:
                    assert same_bits(found, tree) and found_meta == meta, path
            shutil.rmtree(bad)
    gc.collect()
    assert noticed > 5
