"""Sets in memory: order, digits, and one clear sentence for every wrong name."""

import subprocess
import sys

import numpy as np
import pytest

from atkd_jax import data
from atkd_jax.data import memory
from atkd_jax.data.info import KNOWN, channel_moments


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = data.epoch_order(3, 1, 103, 10)
    assert order.shape == (10, 10) and order.dtype == np.int32
    assert len(np.unique(order)) == 100 and order.min() >= 0 and order.max() < 103
    np.testing.assert_array_equal(order, data.epoch_order(3, 1, 103, 10))
    assert (order != data.epoch_order(3, 2, 103, 10)).any()
    assert (order != data.epoch_order(4, 1, 103, 10)).any()
    # The frozen stream of RandomState: these numbers hold on every NumPy and every machine.
    np.testing.assert_array_equal(data.epoch_order(0, 0, 8, 4), [[3, 7, 4, 0], [2, 6, 5, 1]])


def test_a_batch_larger_than_the_data_set_is_an_error():
    with pytest.raises(ValueError, match="batch_size 11 is not in 1..10"):
        data.epoch_order(0, 0, 10, 11)


@pytest.mark.parametrize("num", [1, 9, 10, 11, 20])
def test_eval_order_shows_every_example_once(num):
    index, mask = data.eval_order(num, 10)
    assert index.shape == mask.shape == (-(-num // 10), 10)
    np.testing.assert_array_equal(index[mask], np.arange(num))


def test_digits_split_is_fixed_and_stratified():
    source = data.load("digits")
    assert source.train.image.shape == (1437, 16, 16, 3) and source.test.image.shape[0] == 360
    assert source.train.image.dtype == np.uint8 and source.train.label.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(source.test.label), [36] * 10)
    assert source.info.num_classes == 10 and source.info.num_train == 1437
    assert source.train.image.min() == 0 and source.train.image.max() == 255
    # No image is in both halves, and each is a picture of 8x8 doubled.
    train = {image.tobytes() for image in source.train.image}
    assert not train & {image.tobytes() for image in source.test.image}
    np.testing.assert_array_equal(
        source.train.image[:, ::2, 1::2], source.train.image[:, 1::2, ::2]
    )
    again = data.load("digits")
    np.testing.assert_array_equal(source.test.image, again.test.image)
    np.testing.assert_array_equal(source.info.train_label, source.train.label)


def test_moments_equal_numpy():
    image = np.random.RandomState(0).randint(0, 200, (5, 4, 3, 3), np.uint8)
    mean, std = channel_moments(image)
    np.testing.assert_allclose(mean, (image / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (image / 255).std((0, 1, 2)), rtol=1e-9)
    assert channel_moments(np.full((2, 2, 2, 3), 7, np.uint8))[1] == (1 / 255,) * 3


@pytest.mark.parametrize(
    ("name", "hint"), [("cifar1", "did you mean 'cifar10'"), ("nzp:x", "did you mean 'npz:'")]
)
def test_unknown_name_gives_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        data.load(name)


def test_known_specs_are_consistent():
    for name, info in KNOWN.items():
        assert info.name == name
        assert len(set(info.class_names)) == info.num_classes
        assert len(info.mean) == len(info.std) == 3


@pytest.mark.slow
def test_digits_need_no_tensorflow(tmp_path):
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "from atkd_jax import data\n"
        "assert len(data.load('digits').train.label) == 1437\n"
        f"try: data.load('cifar10', data_dir={str(tmp_path)!r})\n"
        "except ValueError as error: assert 'pip install tensorflow-cpu' in str(error)\n"
        "else: raise SystemExit('cifar10 was read without TensorFlow')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_of_each_class_comes_first():
    label = np.array([2, 2, 0, 2, 1, 0, 0])
    rows = memory.one_of_each(label, 7)
    np.testing.assert_array_equal(rows, [2, 4, 0, 5, 1, 6, 3])
    np.testing.assert_array_equal(label[rows], [0, 1, 2, 0, 2, 0, 2])
    np.testing.assert_array_equal(memory.one_of_each(label, 2), [2, 4])


@pytest.mark.parametrize("name", ["digits", "npz"])
def test_images_that_stay_as_they_are_have_no_other_size(name, npz):
    name, size = {"digits": ("digits", 16), "npz": (f"npz:{npz}", 8)}[name]
    for right in (0, size):
        assert data.load(name, image_size=right).info.image_shape == (size, size, 3)
    with pytest.raises(ValueError, match=f"are {size}x{size} and stay so: leave image_size=32 out"):
        data.load(name, image_size=32)
    for wrong in (-8, 1.5, "16", True):
        with pytest.raises(ValueError, match="is no whole number of pixels"):
            data.load(name, image_size=wrong)
