"""A dry run says what a run will be and reads nothing."""

import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from atkd_jax.errors import UserError
from atkd_jax.training import dry_run, from_config
from atkd_jax.training.loader import make_loader
from atkd_jax.training.setup import make_parallel
from configs import cifar10, cinic10, digits, imagenet, svhn
from tests.small_runs import PATIENCE, small_config, write_npz


def small_cifar(**changes):
    config = cifar10.get_config("method=atkd,pair=r20_r8")
    config.teacher.model = "resnet8"
    config.update(changes)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("mode, accumulate", [("shard_map", 1), ("pmap", 1), ("none", 2)])
def test_the_plan_compiles_without_data(mode, accumulate, monkeypatch):
    monkeypatch.setattr("atkd_jax.data.Cifar.load", None)  # nothing may be read
    config = small_cifar(parallel=mode, batch_size=64)
    config.terms = {"kd": {"weight": 1.0}}
    config.accumulate = accumulate
    config.teacher.update(weights="not_here.pth", mean=(0.5,) * 3, std=(0.25,) * 3)
    text = "\n".join(dry_run.describe_plan(config))
    devices = 1 if mode == "none" else jax.device_count()
    assert f"devices: {devices} x" in text and f"batch: 64 = {devices} x {64 // devices}" in text
    assert "240 epochs x 781 = 187,440" in text
    assert "student resnet8: 78,042 parameters, 12,501,632 MACs = 25,003,264 FLOPs" in text
    assert "teacher weights: not_here.pth" in text
    assert float(re.search(r"memory: ([\d.]+) GiB", text)[1]) > 0.1  # the images alone are 0.14
    flops = int(re.search(r"XLA counts ([\d,]+) FLOPs", text)[1].replace(",", ""))
    # Teacher and student forwards, and a backward of twice the forward; the rest is a fifth more.
    assert flops == pytest.approx(4 * 25_003_264, rel=0.25)


def test_a_step_that_does_not_fit_is_one_line(monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Used 20G of 15.75G hbm.\nAnd so on"
            )

    compiling = lambda *_: types.SimpleNamespace(lower=lambda *_: Lowered())  # noqa: E731
    monkeypatch.setattr(dry_run, "compile_steps", compiling)
    with pytest.raises(UserError, match="does not fit .* accumulate: .* Used 20G of 15.75G hbm.$"):
        dry_run.compile_step(dry_run.make_plan(small_cifar(batch_size=64)))


@pytest.mark.slow
@pytest.mark.tpu
def test_a_slice_of_tpus_is_compiled_for(tmp_path):
    """The command sets the environment itself. All numbers are those of XLA, bounds are ours."""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "atkd_jax.main", "--config=configs/digits.py:method=none"]
    command += [f"--config.data.name=npz:{write_npz(tmp_path / 'data.npz')}"]
    command += ["--config.dry_run=True", "--config.topology=v5e:2x4", "--config.batch_size=32"]
    ours = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, env=ours, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "devices: 8 x TPU v5 lite of v5e:2x4, shard_map, float32" in done.stdout
    check_slice(done.stdout)


@pytest.mark.slow
@pytest.mark.tpu
def test_pmap_is_compiled_for_a_slice(tmp_path):
    pytest.importorskip("libtpu")
    config = digits.get_config("method=none")
    config.data.name = f"npz:{write_npz(tmp_path / 'data.npz')}"
    config.update(dry_run=True, topology="v5e:2x4", batch_size=32, parallel="pmap")
    check_slice("\n".join(dry_run.describe_plan(config)))


def check_slice(text):
    """ResNet-8 on images of 8x8 and eight chips: nine batch norms, one gradient."""
    assert "it fits into a chip's 16 GB" in text
    reduces = re.search(r"collectives a step: (\d+) all-reduce of ([\d.]+) MiB together", text)
    assert 10 <= int(reduces[1]) <= 30
    assert 4 * 78_042 / 2**20 <= float(reduces[2]) < 0.5  # float32 gradients and statistics
    time = re.search(r"XLA estimates ([\d.]+) ms", text)
    bounds = re.search(r"([\d.]+) ms of arithmetic at 197 .*, ([\d.]+) ms of memory at 819", text)
    assert float(time[1]) > 0 and float(bounds[2]) > float(bounds[1])


def test_statistics_that_make_no_sense_are_refused_without_the_weights():
    config = small_cifar(batch_size=64)
    config.teacher.update(weights="not_here.pth", mean=(127.0,) * 3, std=(60.0,) * 3)
    with pytest.raises(ValueError, match="teacher.mean .* is not .* by 255"):
        dry_run.describe_plan(config)


def test_imagenet_is_known_without_being_there():
    config = imagenet.get_config()
    info, in_memory = dry_run.known(config)
    assert not in_memory and info.image_shape == (224, 224, 3) and info.num_classes == 1000
    loader = dry_run.abstract_loader(config, make_parallel(config))
    assert loader.stack.image.shape == (1, 1024, 224, 224, 3) and loader.steps_per_epoch == 1251
    assert loader.train_data == ()


@pytest.mark.parametrize(
    "config, num", [(svhn, 73_257 + 531_131), (cinic10, 180_000)], ids=["svhn", "cinic10"]
)
def test_options_that_add_images_count(config, num):
    config = config.get_config()
    name = config.data.name
    config.data.options = {"extra": True} if name == "svhn" else {"train": "train+validation"}
    info, in_memory = dry_run.known(config)
    assert in_memory and info.num_train == num == len(info.train_label)


@pytest.mark.parametrize("mode", ["shard_map", "pmap", "none"])
def test_the_shapes_are_those_of_a_run(tmp_path, mode):
    config = small_config(write_npz(tmp_path / "data.npz"))
    config.parallel = mode
    parallel = make_parallel(config)
    loader = make_loader(from_config.source(config), parallel, config.batch_size, seed=0)
    assert "train_data" not in vars(loader)  # its teacher may still have to be trained
    abstract = dry_run.abstract_loader(config, parallel)
    stack, _, _ = next(loader.train(0, 0, 1))
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype),
        (abstract.train_data, abstract.stack),
        (loader.train_data, stack),
    )
    assert jax.tree.leaves(same) and all(jax.tree.leaves(same))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size 51200 is larger than the training set"):
        dry_run.describe_plan(small_cifar(batch_size=51_200))


@pytest.mark.slow
def test_the_command_needs_no_workdir(tmp_path):
    npz = write_npz(tmp_path / "data.npz")
    command = [sys.executable, "-m", "atkd_jax.main", "--config=configs/digits.py:method=none"]
    command += [f"--config.data.name=npz:{npz}", "--config.batch_size=16"]
    done = subprocess.run(
        [*command, "--config.dry_run=True"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "96 training and 20 test images of 8x8x3" in done.stdout and "memory:" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and "add --workdir=DIR" in done.stderr


def test_the_rate_of_imagenet_grows_with_the_batch():
    for epochs, peak in (("300", 0.2), ("100", 0.4)):
        config = imagenet.get_config(f"epochs={epochs}")
        lr = from_config.schedule(config, 1251)
        np.testing.assert_allclose(lr(5 * 1251), peak, rtol=1e-4)
        assert config.epochs == int(epochs)
    with pytest.raises(ValueError, match="unknown track of epochs '200'"):
        imagenet.get_config("epochs=200")
