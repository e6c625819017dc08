"""Corrupted images are what their names say, the more the stronger."""

import colorsys

import numpy as np
import pytest
from result_lines import KD, line, write

from experiments.results import store
from experiments.studies import students
from experiments.studies.corruptions import STRENGTHS, corrupt

SMOOTH = np.linspace(20, 200, 32)[None, :, None, None] + np.linspace(-20, 20, 32)[:, None]
IMAGE = np.broadcast_to(SMOOTH, (4, 32, 32, 3)) + np.array([0, 10, 30])
IMAGE = (IMAGE + np.random.RandomState(0).uniform(-15, 15, IMAGE.shape)).astype(np.uint8)


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_stronger_corruption_changes_more(kind):
    found = [corrupt(kind, strength, IMAGE) for strength in STRENGTHS[kind]]
    assert all(x.dtype == np.uint8 and x.shape == IMAGE.shape for x in found)
    change = [np.abs(x - IMAGE.astype(float)).mean() for x in found]
    assert change == sorted(change) and change[0] > 0.5


def test_noise_has_the_given_deviation_and_repeats():
    grey = np.full((8, 32, 32, 3), 128, np.uint8)
    noise = corrupt("gaussian noise", 0.1, grey)
    assert noise.std() / 255 == pytest.approx(0.1, rel=0.02)
    np.testing.assert_array_equal(noise, corrupt("gaussian noise", 0.1, grey))


def test_blur_stays_within_an_image():
    image = np.zeros((2, 8, 8, 3), np.uint8)
    image[1] = 200
    assert (corrupt("gaussian blur", 1, image) == image).all()
    image[1, :, :, 2] = 0
    assert (corrupt("gaussian blur", 1, image) == image).all()


def test_contrast_keeps_the_mean_of_every_channel():
    low = corrupt("contrast", 0.15, IMAGE)
    np.testing.assert_allclose(low.mean((1, 2)), IMAGE.mean((1, 2)), atol=1)
    assert low.std() < 0.3 * IMAGE.std()


def test_brightness_adds_to_the_value_of_hsv():
    image = np.array([[[[0, 0, 0], [200, 100, 50], [255, 10, 0]]]], np.uint8)
    bright = corrupt("brightness", 0.1, image)[0, 0] / 255
    for before, after in zip(image[0, 0] / 255, bright, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.1, 1))
        np.testing.assert_allclose(after, expected, atol=1 / 255)


def test_pixelation_has_no_detail_below_its_grid():
    pixels = corrupt("pixelation", 0.5, IMAGE)
    np.testing.assert_array_equal(pixels[:, ::2, ::2], pixels[:, 1::2, 1::2])


def test_finished_students_are_those_of_the_table_that_are_there(tmp_path):
    lines = [line(f"few_images:method=kd,images={n},steps=781", 2, 50.0) for n in (500, 2500)]
    others = line(KD, 0, 98.0), line("few_images:method=none,data=cifar100,images=500", 2, 50.0)
    write(tmp_path / "results", *lines, *others)
    for one in (lines[0], *others):
        (tmp_path / one["hash"] / "export").mkdir(parents=True)
    [(found, folder)] = students.finished(tmp_path, store.read(tmp_path / "results")[0])
    assert folder == tmp_path / lines[0]["hash"]
    row = {"hash": lines[0]["hash"], "method": "kd", "images": 500, "steps": 781, "seed": 2}
    assert students.about(found) == row
    students.write(tmp_path / "new" / "rows.json", [row, row])
    assert students.read(tmp_path / "new" / "rows.json", {row["hash"]}) == [row, row]
    assert students.read(tmp_path / "new" / "rows.json", {"of a line that was removed"}) == []
    assert students.read(tmp_path / "old.json", {row["hash"]}) == []
