"""Every mistake costs one clear line and leaves the workdir as it was."""

import contextlib
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import CLASSES, run, small_config, write_npz

from atkd_jax import data
from atkd_jax.errors import UserError
from atkd_jax.runtime import run_files
from atkd_jax.runtime.checkpoint import Checkpoints, read_export_meta
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import teachers
from atkd_jax.training.dry_run import make_plan
from atkd_jax.training.evaluate import make_evaluate
from atkd_jax.training.loader import MemoryLoader
from atkd_jax.training.loop import train_and_evaluate
from atkd_jax.training.students import Student, Students
from atkd_jax.types import ModelOut


@pytest.fixture(scope="module")
def teacher_run(npz, tmp_path_factory):
    """A finished run of one epoch, whose export can teach."""
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    config = small_config(npz)
    config.epochs = 1
    train_and_evaluate(config, workdir)
    return workdir


def files(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def change(*assignments):
    def apply(config):
        for key, value in assignments:
            target, *rest = key.split(".")[::-1]
            node = config
            for part in rest[::-1]:
                node = node[part]
            with node.unlocked():
                node[target] = value

    return apply


MISTAKES = {
    "a data set": ([("data.name", "cifar11")], "did you mean '?cifar10"),
    "a missing npz": (
        [("data.name", "npz:/nowhere.npz")],
        "/nowhere.npz cannot be read as .npz: No such file",
    ),
    "a student": ([("student", "resnet9")], "did you mean 'resnet"),
    "a teacher": ([("teacher.model", "resnet5")], "did you mean 'resnet"),
    "no teacher": ([("teacher.model", "")], "set config.teacher.model"),
    "missing weights": ([("teacher.weights", "/nowhere.pth")], "/nowhere.pth does not exist"),
    "statistics of no weights": (
        [("teacher.mean", (0.5, 0.5, 0.5))],
        "belong to published weights; give teacher.weights or drop them",
    ),
    "other weights": (
        [("teacher.weights", __file__)],
        "neither torch.save nor safetensors wrote it",
    ),
    "a method": ([("terms", {"kdd": {"weight": 1.0}})], "did you mean 'kd'"),
    "a hyper-parameter": (
        [("terms", {"kd": {"weight": 1.0, "temprature": 4.0}})],
        "did you mean 'temperature'",
    ),
    "no weight": ([("terms", {"kd": {}})], "terms.kd has no weight"),
    "a missing stage": (
        [("terms", {"at": {"weight": 1.0, "taps": ("stage4",)}})],
        "stage4",
    ),
    "a large batch": ([("batch_size", 97)], "larger than the training set"),
    "a mixture": (
        [("terms", {"dkd": {"weight": 1.0}}), ("data.mix.mixup", 0.2)],
        "dkd needs one class per example, not a mixture of two; set data.mix.mixup=0",
    ),
    "no batch": ([("batch_size", 0)], "batch_size 0 is not a whole number from 1"),
    "no epochs": ([("epochs", 0)], "epochs 0 is not a whole number from 1"),
    "no saving": ([("checkpoint.every_epochs", 0)], "checkpoint.every_epochs 0 is not a whole"),
    "a schedule": ([("schedule.name", "cosin")], "did you mean 'cosine'"),
    "an optimiser": ([("optimizer.name", "sgdd")], "did you mean 'sgd'"),
    "a dtype": ([("dtype", "float8")], "did you mean 'float32'"),
    "a way to run": ([("parallel", "gpu")], "choose one of: shard_map"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(mistake, npz, tmp_path):
    assignments, message = MISTAKES[mistake]
    config = small_config(npz, "kd")
    change(*assignments)(config)
    with pytest.raises(UserError, match=message) as caught:
        train_and_evaluate(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_teacher_with_other_classes_is_refused(teacher_run, tmp_path):
    config = small_config(write_npz(tmp_path / "four.npz", classes=4), "kd")
    config.teacher.weights = str(teacher_run / "export")
    with pytest.raises(ValueError, match="num_classes 3, this run needs 4"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_exported_teacher_knows_its_own_statistics(npz, teacher_run, tmp_path):
    config = small_config(npz, "kd")
    config.teacher.weights = str(teacher_run / "export")
    config.teacher.std = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"was trained with std \(.*not \(0.5, 0.5, 0.5\); drop"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.teacher.std = read_export_meta(teacher_run / "export")["std"]
    assert teachers.describe(config, data.load(config.data.name).info).std == config.teacher.std


@pytest.mark.slow
def test_a_teacher_that_is_not_as_good_as_expected_is_refused(npz, teacher_run, tmp_path):
    config = small_config(npz, "kd")
    config.teacher.weights = str(teacher_run / "export")
    config.teacher.expect_top1 = 1.0
    with pytest.raises(ValueError, match="expected 1.00"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_with_another_configuration_is_refused(npz, teacher_run):
    config = small_config(npz)
    config.epochs, config.optimizer.lr = 1, 0.3
    before = files(teacher_run)
    with pytest.raises(ValueError, match=r"optimizer\.lr=0\.1, not 0\.3"):
        train_and_evaluate(config, teacher_run)
    assert files(teacher_run) == before


def test_a_key_that_is_newer_than_a_run_is_no_difference_while_it_is_off(npz, tmp_path):
    config = small_config(npz)
    older = config.to_dict()
    del older["teacher"]["weights_key"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    run_files.check(config, tmp_path)
    config.teacher.weights_key = "ema"
    with pytest.raises(ValueError, match="teacher.weights_key=None, not ema"):
        run_files.check(config, tmp_path)


def test_a_workdir_of_before_image_size_goes_on(npz, tmp_path):
    """Its data had no options at all."""
    config = small_config(npz)
    older = config.to_dict()
    del older["data"]["options"]["image_size"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    run_files.check(config, tmp_path)
    config.data.options.image_size = 8
    with pytest.raises(ValueError, match=r"data.options.image_size=None, not 8"):
        run_files.check(config, tmp_path)


def test_a_bucket_is_no_workdir(npz):
    with pytest.raises(ValueError, match="is a bucket"):
        train_and_evaluate(small_config(npz), Path("gs://somewhere/run"))
    assert not Path("gs:").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(npz, teacher_run, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(teacher_run, workdir)
    (workdir / "summary.json").unlink()
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(b"not a checkpoint")
    config = small_config(npz)
    config.epochs = 1
    with pytest.raises(ValueError, match="checkpoints/6 is damaged"):
        train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(npz, tmp_path):
    config = small_config(npz)
    train = tmp_path / "run"
    config.optimizer.lr, config.optimizer.weight_decay = 1e6, 1e6
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+ \(in: ce"):
        train_and_evaluate(config, train)
    assert not (train / "summary.json").exists()


def test_a_network_that_says_no_numbers_has_no_result(npz):
    parallel, source = Parallel("none"), data.load(f"npz:{npz}")

    class Constant:
        def infer(self, logits, image):
            return ModelOut(jnp.broadcast_to(logits, (len(image), CLASSES)), {})

    loader = MemoryLoader(source, parallel, 16, seed=0)
    evaluate = make_evaluate(Constant(), loader, parallel)
    assert evaluate(np.zeros((1, CLASSES), "f4"))["loss"] == pytest.approx(np.log(CLASSES))
    with pytest.raises(FloatingPointError, match="the loss is not finite on the test set of npz:"):
        evaluate(np.full((1, CLASSES), np.nan, "f4"))


def test_a_state_that_is_not_finite_is_not_saved(npz, tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        student = Student(small_config(npz), tmp_path, setup=None)
        group = Students([student], parallel=None, loader=None, checkpoints=checkpoints)
        group.active = [student]
        group.states = ({"n": np.int32(3), "w": np.ones(2)},)
        group.save(1, {})
        group.states = ({"n": np.int32(3), "w": np.array([1.0, np.nan])},)
        with pytest.raises(FloatingPointError, match=r"after step 2 is not finite \(in: w\)"):
            group.save(2, {})
        assert checkpoints.latest() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.bach_size=3", "batch_size"),
        ("--config.epochs=two", "epochs"),
        ("--config.data.options.imagesize=96", "image_size"),
        ("--config.data.options.image_size=96", "are 8x8 and stay so: leave image_size=96 out"),
    ],
)
def test_the_command_line_says_one_line(override, message, npz, tmp_path):
    done = run(npz, tmp_path / "run", override)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_mistake_below_frames_of_jax_is_no_bug(npz):
    config = small_config(npz)
    change(*MISTAKES["a missing stage"][0])(config)
    with pytest.raises(UserError):
        make_plan(config)


@pytest.mark.slow
def test_an_unknown_preset_is_named_on_the_command_line(npz, tmp_path):
    done = run(npz, tmp_path / "run", method="atkdd")
    assert done.returncode != 0 and "did you mean 'atkd'" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_the_last_good_checkpoint_survives_a_nan(npz, tmp_path):
    config = small_config(npz)
    config.checkpoint.every_steps = 1
    config.schedule.update(name="step", milestones=(2,), factor=1e12, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match="checkpoint of step"):
        train_and_evaluate(config, tmp_path / "run")
    saved = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) >= 12
    assert np.isfinite(max(saved))
