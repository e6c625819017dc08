"""Checkpoints are durable, checked when read, and never replace what is not theirs."""

import contextlib
import functools
import gc
import os
import shutil

import jax
import numpy as np
import pytest
from small_runs import EXPORT_META, flip, same_bits

from atkd_jax.runtime import checkpoint
from atkd_jax.runtime.checkpoint import Checkpoints

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int32(3)}
LIKE = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, TREE))


def test_a_checkpoint_is_on_the_disk_when_saving_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, TREE, {"history": [1]})
    assert os.listdir(tmp_path) == ["5"]
    with contextlib.closing(Checkpoints(tmp_path)) as others:
        tree, meta = others.restore(5, LIKE, HERE)
    assert same_bits(tree, TREE) and meta == {"history": [1]}
    checkpoints.close()


@pytest.mark.filterwarnings("error")  # the error is the only message
def test_no_file_of_a_checkpoint_can_be_changed_or_lost_unnoticed(tmp_path):
    """Every file in turn: either nothing was lost with it, or it is an error that names it."""
    rng = np.random.RandomState(0)
    tree = {"w": jax.numpy.asarray(rng.rand(300, 9).astype(np.float32)), "n": jax.numpy.int32(3)}
    meta = {"sums": {"loss": 1.25}, "history": [1]}
    good, bad = tmp_path / "good", tmp_path / "bad"
    with contextlib.closing(Checkpoints(good)) as checkpoints:
        checkpoints.save(5, tree, meta)
    like = jax.eval_shape(lambda: tree)
    noticed = 0
    for path in [path.relative_to(good) for path in good.rglob("*") if path.is_file()]:
        for damage in (lambda p: p.unlink(), flip, functools.partial(flip, place=0.8)):
            shutil.copytree(good, bad)
            damage(bad / path)
            with contextlib.closing(Checkpoints(bad)) as checkpoints:
                assert checkpoints.latest() == 5
                try:
                    found, found_meta = checkpoints.restore(5, like, HERE)
                except ValueError as error:
                    assert f"checkpoint {bad}/5 is damaged" in str(error)
                    noticed += 1
                else:
                    assert same_bits(found, tree) and found_meta == meta, path
            shutil.rmtree(bad)
    gc.collect()
    assert noticed > 5


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/checkpoints cannot be written .*Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_an_export_replaces_its_own_and_nothing_else(tmp_path):
    folder = tmp_path / "export"
    checkpoint.save_export(folder, TREE, EXPORT_META)
    (folder / "notes.txt").write_text("mine")
    other = jax.tree.map(lambda x: x + 1, TREE)
    checkpoint.save_export(folder, other, EXPORT_META)
    assert same_bits(checkpoint.load_export(folder, LIKE), other)
    assert (folder / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["export"]


def test_an_export_that_was_killed_half_way_is_written_anew(tmp_path):
    """As versions before this one left it: without the file that names it."""
    folder = tmp_path / "export"
    checkpoint.save_export(folder, TREE, EXPORT_META)
    (folder / "meta.json").unlink()
    checkpoint.save_export(folder, TREE, EXPORT_META)
    assert sorted(os.listdir(folder)) == ["meta.json", "variables"]


def test_a_folder_of_the_users_is_not_replaced_by_an_export(tmp_path):
    folder = tmp_path / "export"
    (folder / "variables").mkdir(parents=True)
    (folder / "variables" / "thesis").write_text("three years")
    with pytest.raises(ValueError, match="export/variables is in the way"):
        checkpoint.save_export(folder, TREE, EXPORT_META)
    assert (folder / "variables" / "thesis").read_text() == "three years"
    assert os.listdir(tmp_path) == ["export"]
