"""The examples: the script for devices sees what evaluation saw; methods train in any loop."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from image_kinds import kinds
from images import encoded, picture
from PIL import Image

from atkd_jax import data, models
from atkd_jax.data import preparation
from atkd_jax.models.network import Network
from examples import own_loop

CLASSIFY = Path(__file__).parent.parent / "examples/device/classify.py"
spec = importlib.util.spec_from_file_location("classify", CLASSIFY)
classify = importlib.util.module_from_spec(spec)
spec.loader.exec_module(classify)


def write_kinds(root, sizes):
    """A folder of every kind of image in every size, the same ones to train and to test on."""
    for number, size in enumerate(sizes):
        for name, (content, _) in kinds(size, number).items():
            for split in ("train", "test"):
                path = root / split / f"class{number}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return f"folder:{root}"


def plan_of(source):
    """As a device gets it."""
    return json.loads(json.dumps(preparation.describe(source)))


@pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.7])
def test_a_device_sees_what_the_evaluation_of_a_stream_saw(tmp_path, crop_ratio):
    name = write_kinds(tmp_path, [(40, 30), (30, 40), (33, 33), (90, 25)])
    source = data.load(name, share=data.Share(50), image_size=21, crop_ratio=crop_ratio)
    plan, files = plan_of(source), source.records.test_files.path
    compared = 0
    for batch in source.test():
        for image, index in zip(batch.image[batch.mask], batch.index[batch.mask], strict=True):
            ours = classify.prepare(files[index], plan)
            # Both round once, after filters that agree to within a thousandth of a grey level.
            assert np.abs(ours.astype(int) - image).max() <= 1, files[index]
            compared += 1
    assert compared == len(files) > 100


@pytest.mark.parametrize("size", [(40, 30), (16, 24)])
def test_a_device_sees_what_was_held_in_memory(tmp_path, size):
    source = data.load(write_kinds(tmp_path, [size, size]))
    assert isinstance(source, data.MemorySource)
    plan, files = plan_of(source), sorted((tmp_path / "test").rglob("*.*"))
    assert len(files) == len(source.test.image) > 60
    for image, path in zip(source.test.image, files, strict=True):
        np.testing.assert_array_equal(classify.prepare(path, plan), image, str(path))


@pytest.mark.parametrize(
    ("shape", "resized", "box"),
    [
        ((80, 60), (40, 30), (0, 0, 40, 30)),
        ((80, 90), (40, 45), (0, 8, 40, 38)),  # 7.5 pixels too many, rounded to even
        ((100, 50), (60, 30), (10, 0, 50, 30)),
        ((20, 10), (60, 30), (10, 0, 50, 30)),
    ],
)
def test_what_has_another_size_covers_the_images_of_memory(tmp_path, shape, resized, box):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(0, shape), "PNG"))
    plan = {"cover": [30, 40], "crop": [30, 40]}
    expected = Image.open(path).resize(resized, Image.Resampling.BILINEAR).crop(box)
    np.testing.assert_array_equal(classify.prepare(path, plan), np.asarray(expected))


@pytest.mark.slow
def test_methods_train_in_a_loop_of_ones_own():
    digits = data.load("digits")
    teacher, student = (
        Network(models.create(name, num_classes=10), digits.info.mean, digits.info.std)
        for name in ("resnet14", "resnet8")
    )
    variables, _ = own_loop.fit(teacher, digits, epochs=0)  # as initialised
    _, losses = own_loop.fit(student, digits, lambda image: teacher.apply(variables, image), 1)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
