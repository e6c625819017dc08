"""A run goes on only with the data and the teacher that it began with."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from images import encoded
from small_runs import small_config

from atkd_jax import data
from atkd_jax.data import digits
from atkd_jax.runtime import checkpoint
from atkd_jax.runtime.fingerprint import DATA, difference, of_data, same_classes
from atkd_jax.runtime.logs import Log
from atkd_jax.runtime.preemption import Interrupted
from atkd_jax.training import loop, teachers
from atkd_jax.training.loop import train_and_evaluate

CLASSES = ("ant", "bee", "cow")


def write_images(root, train=48, test=21):
    """Noise whose brightness tells the class, as PNGs of 8x8."""
    rng = np.random.RandomState(0)
    for split, num in (("train", train), ("test", test)):
        for i in range(num):
            path = root / split / CLASSES[i % 3] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.randint(0, 64, (8, 8, 3)) + 60 * (i % 3)
            path.write_bytes(encoded(image.astype(np.uint8), "PNG"))
    return root


def rename(root, old, new):
    for split in ("train", "test"):
        (root / split / old).rename(root / split / new)


def add(root):
    shutil.copy(root / "train/ant/000.png", root / "train/ant/again.png")


def halve(root):
    for path in sorted((root / "train").glob("*/*.png"))[::2]:
        path.unlink()


def repaint(root):
    (root / "train/bee/001.png").write_bytes((root / "train/bee/004.png").read_bytes())


def move_an_image(root):
    (root / "test/ant/000.png").rename(root / "test/bee/000.png")


CHANGES = {
    "images that were added": (add, "number of training images: 48 then, 49 now"),
    "images that were deleted": (halve, "number of training images: 48 then, 24 now"),
    "a class that was renamed": (
        lambda root: rename(root, "ant", "x_ant"),
        "class 0: 'ant' then, 'bee' now",
    ),
    "an image that was replaced": (repaint, r"training images \(digest\): \w+ then, \w+ now"),
    "a label that was changed": (move_an_image, r"labels of the test images \(digest\): \w+ then"),
}


def config_of(root, method="none"):
    config = small_config(root, method)
    config.data.name, config.epochs, config.teacher.epochs = f"folder:{root}", 2, 1
    return config


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder of images and the workdir of a run on it that a signal stopped after one epoch."""
    root = write_images(tmp_path_factory.mktemp("data") / "images")
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Interrupted, match="step 3 of 6"):
        patched.setattr(Log, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_and_evaluate(config_of(root), workdir)
    return root, workdir


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder of images and the export of a run on it."""
    root = write_images(tmp_path_factory.mktemp("data") / "images")
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    train_and_evaluate(config_of(root), workdir)
    return root, workdir / "export"


@pytest.fixture
def changed(request, tmp_path):
    """A changed copy of a fixture's images, at the place of the original while the test runs."""

    def apply(root, change):
        shutil.move(root, tmp_path / "original")
        shutil.copytree(tmp_path / "original", root)
        request.addfinalizer(lambda: shutil.move(tmp_path / "original", root))
        request.addfinalizer(lambda: shutil.rmtree(root))
        change(root)

    return apply


def files(workdir):
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_data(change, stopped, changed):
    root, workdir = stopped
    apply, message = CHANGES[change]
    before = files(workdir)
    changed(root, apply)
    with pytest.raises(ValueError, match=message) as told:
        train_and_evaluate(config_of(root), workdir)
    assert "\n" not in str(told.value) and str(workdir) in str(told.value)
    assert "start another --workdir" in str(told.value)
    assert files(workdir) == before


@pytest.mark.slow
def test_with_the_data_it_began_with_it_goes_on(stopped, tmp_path, capsys):
    root, workdir = stopped
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("not what the run wrote\n")
    result = train_and_evaluate(config_of(root), tmp_path / "run")
    assert "going on from step 3" in capsys.readouterr().out
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and result["last"]["epoch"] == 2
    assert all(0 <= row["train/top1"] <= 100 for row in rows)
    assert rows[1]["train/top1"] > 1  # in percent, as test/top1


@pytest.mark.parametrize("name", ["2", "7"])
def test_a_checkpoint_that_was_renamed_is_not_used(name, stopped, tmp_path):
    root, workdir = stopped
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/checkpoints/3").rename(tmp_path / "run/checkpoints" / name)
    with pytest.raises(ValueError, match=f"checkpoints/{name} was saved at step 3, and the run"):
        train_and_evaluate(config_of(root), tmp_path / "run")


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(stopped, monkeypatch):
    root, workdir = stopped
    manager = checkpoint.ocp.CheckpointManager
    monkeypatch.setattr(manager, "restore", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train_and_evaluate(config_of(root), workdir)


def test_streams_are_told_apart_by_their_files(tmp_path):
    root = write_images(tmp_path / "images")

    def known():
        return of_data(data.load(f"folder:{root}", share=data.Share(4), image_size=16))

    before = known()
    assert difference(before, known(), DATA) is None
    (root / "train/bee/001.png").write_bytes(encoded(np.zeros((9, 9, 3), np.uint8), "PNG"))
    assert "training images (digest)" in difference(before, known(), DATA)


def test_a_teacher_of_other_classes_is_refused(taught, tmp_path):
    """As many classes, and numbers that mean others."""
    other = write_images(tmp_path / "images")
    for old, new in zip(CLASSES, ("z_ant", "y_bee", "x_cow"), strict=True):
        rename(other, old, new)
    config = config_of(other, "kd")
    config.teacher.weights = str(taught[1])
    with pytest.raises(ValueError, match=r"other classes .*class 0: 'ant' then, 'x_cow' now"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_are_no_names_of_classes():
    assert same_classes(("0", "1"), ("ant", "bee")) and same_classes(["ant"], ("ant",))
    assert not same_classes(("bee", "ant"), ("ant", "bee")) and not same_classes("01", "012")


def test_a_teacher_that_is_not_as_good_as_its_export_says_is_refused(taught, tmp_path):
    root, export = taught
    shutil.copytree(export, tmp_path / "export")
    meta = json.loads((tmp_path / "export/meta.json").read_text())
    good, meta["top1"] = meta["top1"], meta["top1"] - 50
    (tmp_path / "export/meta.json").write_text(json.dumps(meta))
    config = config_of(root, "kd")
    config.teacher.weights = str(tmp_path / "export")
    with pytest.raises(ValueError, match=f"is {good:.2f}, and .*/export says {good - 50:.2f}"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    now = of_data(data.load(config.data.name))
    assert "top1" in teachers.check_export(config, tmp_path, now)
    assert "top1" not in teachers.check_export(config, tmp_path, now | {"test_images": "others"})


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_teacher(taught, tmp_path, monkeypatch):
    root, export = taught
    config = config_of(root, "kd")
    config.teacher.weights = str(shutil.copytree(export, tmp_path / "export"))
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Log, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_and_evaluate(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "export")
    config.seed = 1
    train_and_evaluate(teachers.teacher_config(config), tmp_path / "other")
    shutil.copytree(tmp_path / "other/export", tmp_path / "export")
    config.seed = 0
    message = (
        r"the teacher of the run in .*run changed since it began: weights \(checksum\): \w{8} "
    )
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(config, tmp_path / "run")


def test_data_that_change_after_the_teacher_was_trained_are_noticed(taught, tmp_path, changed):
    root, export = taught
    shutil.copytree(export.parent, tmp_path / "run" / "teacher")
    config = config_of(root, "kd")
    changed(root, add)
    now = of_data(data.load(config.data.name))
    with pytest.raises(
        ValueError, match="since its teacher was trained: number of training images"
    ):
        teachers.check_export(config, tmp_path / "run", now)


def test_a_signal_in_the_teachers_last_moments_stops_the_student(tmp_path, monkeypatch):
    """The teacher is finished and saved; the student does not begin."""
    root, workdir = write_images(tmp_path / "images"), tmp_path / "run"
    save_export = checkpoint.save_export

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        save_export(*args)

    monkeypatch.setattr(loop, "save_export", signalled)
    with pytest.raises(Interrupted, match="between two checkpoints"):
        train_and_evaluate(config_of(root, "kd"), workdir)
    assert (workdir / "teacher/summary.json").exists()
    assert not (workdir / "config.json").exists()


def test_a_teacher_that_guesses_is_told_of():
    info = digits.read().info
    assert teachers.chance_warning(10.0, info).startswith(
        "warning: the teacher's top-1 of 10.00 is"
    )
    assert teachers.chance_warning(20.0, info) is None
