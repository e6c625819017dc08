"""Which features of the two networks a method compares, and what is said of those it cannot."""

import jax
import jax.numpy as jnp
import pytest

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.types import ModelOut


def outputs(*names, classes=10):
    return ModelOut(
        jax.ShapeDtypeStruct((2, classes), jnp.float32),
        {tap: jax.ShapeDtypeStruct((2, 4, 4, len(tap)), jnp.float32) for tap in names},
    )


def test_taps_are_the_common_stages_from_the_front():
    t = outputs("stem", "stage1", "stage2", "stage2_pre", "stage3", "block1", "pooled")
    s = outputs("stem", "stage1", "stage2", "pooled")
    assert taps.stage_names(t.feats) == ("stage1", "stage2", "stage3")
    pairs = taps.tap_pairs("at", t, s)
    assert pairs == [(t.feats[tap], s.feats[tap]) for tap in ("stage1", "stage2")]
    assert taps.last_stages("sp", t, s) == (t.feats["stage3"], s.feats["stage2"])


def test_a_missing_tap_is_named_with_those_there_are():
    t, s = outputs("stage1", "stage2", "block1"), outputs("stage1", "block1")
    with pytest.raises(UserError, match="^at: the student has no tap stage2; it has stage1$"):
        taps.tap_pairs("at", t, s, ("stage1", "stage2"))
    with pytest.raises(UserError, match="at: there is no stage to compare"):
        taps.tap_pairs("at", t, outputs("pooled"))
    with pytest.raises(UserError, match="sp: the teacher has no stages; it has no taps"):
        taps.last_stages("sp", outputs(), s)


def test_a_method_that_compares_positions_takes_maps_only():
    """And recommends no feature that it would refuse."""
    t, s = outputs("stem", "stage1", "pooled"), outputs("stem", "stage1", "pooled")
    for out in (t, s):
        out.feats["pooled"] = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    assert len(taps.map_pairs("at", t, s, ("stem", "stage1"))) == 2
    with pytest.raises(
        UserError, match="^at: pooled is no map of features, .* take one of stem, stage1$"
    ):
        taps.map_pairs("at", t, s, ("pooled",))
    with pytest.raises(UserError, match="^at: the teacher has no tap stage3; it has stem, stage1$"):
        taps.map_pairs("at", t, s, ("stage3",))
    assert taps.tap_pairs("cc", t, s, ("pooled",))[0][0].ndim == 2


def test_networks_with_different_classes_are_refused():
    with pytest.raises(UserError, match="kd: the teacher has 100 classes, the student 10"):
        taps.check_classes("kd", outputs(classes=100), outputs(classes=10))


def test_blocks_are_every_nth_of_the_teacher_and_all_of_the_student():
    t, s = outputs(*(f"block{i + 1}" for i in range(10))), outputs("block1", "block2")
    blocks_t, blocks_s = taps.block_taps("afd", t, s, 2)
    assert [x.shape[-1] for x in blocks_t] == [len(f"block{i}") for i in (2, 4, 6, 8, 10)]
    assert blocks_s == list(s.feats.values())


def test_blocks_that_are_missing_are_named():
    with pytest.raises(UserError, match="afd: the student has 0 residual blocks"):
        taps.block_taps("afd", outputs("block1"), outputs(), 1)
    with pytest.raises(UserError, match="afd: the teacher has 3 residual blocks.*at least 5"):
        taps.block_taps("afd", outputs("block1", "block2", "block3"), outputs("block1"), 5)
