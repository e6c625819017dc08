"""Slices of TPUs are described and compiled for without having one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_runs import PATIENCE

from atkd_jax.errors import UserError
from atkd_jax.runtime import hlo, topology


@pytest.fixture
def libtpu():
    """XLA's compiler for TPUs."""
    return pytest.importorskip("libtpu")


def test_the_roofline_of_a_matrix_product():
    chip = topology.Chip(flops=100e12, bandwidth=1e12, memory=16e9, pod=4, source="")
    n = 4096  # square matrices of two bytes a number
    arithmetic, memory = topology.roofline(chip, flops=2 * n**3, traffic=3 * 2 * n**2)
    assert arithmetic == pytest.approx(1.374e-3, rel=1e-3)
    assert memory == pytest.approx(1.007e-4, rel=1e-3)


@pytest.mark.parametrize(
    "name, message",
    [
        ("v5x:4x8", "unknown generation of TPU in topology 'v5x'; did you mean 'v5"),
        ("h100:4x8", "unknown generation of TPU in topology 'h100'; choose one of: v4, v5e,"),
        ("v5e:16x32", "topology v5e:16x32 has 512 chips; a slice of v5e has at most 256"),
    ],
)
def test_a_slice_that_nobody_sells_is_refused(name, message):
    with pytest.raises(UserError, match=f"^{message}"):
        topology.devices(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="jax[tpu] is there")
def test_without_the_compiler_the_extra_is_named(monkeypatch):
    for name in topology.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # which undoes what `devices` sets
    with pytest.raises(
        UserError, match=r'^topology v5e:2x2 needs .* run pip install "jax\[tpu\]"$'
    ):
        topology.devices("v5e:2x2")


@pytest.mark.parametrize("name", ["", "v5e:4x8", "v4:2x2x4"])
def test_names_of_slices(name):
    assert topology.SLICE.holds(name)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:32", "v5e:4x", "v5e:4X8", "v5e:4x8\n", 8])
def test_what_is_no_name_of_a_slice(name):
    assert not topology.SLICE.holds(name)


@pytest.mark.tpu
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    "name, chips", [("v4:2x2x4", 16), ("v5e:4x8", 32), ("v5p:2x2x2", 8), ("v6e:2x4", 8)]
)
def test_a_device_is_a_chip(name, chips):
    assert len(topology.devices(name)) == chips


@pytest.mark.tpu
@pytest.mark.usefixtures("libtpu")
def test_a_shape_that_the_compiler_refuses_is_one_line():
    with pytest.raises(
        UserError, match="^topology v5e:3x5 is no slice .* INVALID_ARGUMENT"
    ) as info:
        topology.devices("v5e:3x5")
    assert "\n" not in str(info.value)


@pytest.mark.tpu
@pytest.mark.usefixtures("libtpu")
def test_a_second_dry_run_is_as_quiet_as_the_first(tmp_path):
    command = [sys.executable, "-m", "atkd_jax.main", "--config=configs/digits.py:method=none"]
    command += ["--config.dry_run=True", "--config.topology=v5e:2x2"]
    for _ in range(2):
        done = subprocess.run(
            command,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "XLA estimates" in done.stdout


@pytest.mark.tpu
@pytest.mark.usefixtures("libtpu")
def test_collectives_of_a_compiled_program():
    mesh = Mesh(np.array(topology.devices("v5e:2x2")), "batch")
    everywhere = NamedSharding(mesh, PartitionSpec())
    mean = jax.shard_map(
        lambda x: jax.lax.pmean(x, "batch"),
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    text = jax.jit(mean).lower(jax.ShapeDtypeStruct((8, 128), np.float32, sharding=everywhere))
    assert hlo.collectives(text.compile().as_text()) == {"all-reduce": hlo.Count(1, 4096)}
