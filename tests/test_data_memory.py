"""Sets in memory: order, digits, npz, and one clear sentence for every wrong file."""

import subprocess
import sys

import numpy as np
import pytest

from atkd_jax import data
from atkd_jax.data.spec import KNOWN, channel_moments


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
    assert source.spec.num_classes == 10 and source.spec.num_train == 1437
    assert source.train.image.min() == 0 and source.train.image.max() == 255
    # No image is in both halves, and each is a picture of 8x8 doubled.
    train = {image.tobytes() for image in source.train.image}
    assert not train & {image.tobytes() for image in source.test.image}
    np.testing.assert_array_equal(
        source.train.image[:, ::2, 1::2], source.train.image[:, 1::2, ::2]
    )
    again = data.load("digits")
    np.testing.assert_array_equal(source.test.image, again.test.image)
    np.testing.assert_array_equal(source.spec.train_label, source.train.label)


def test_moments_equal_numpy():
    image = np.random.RandomState(0).randint(0, 200, (5, 4, 3, 3), np.uint8)
    mean, std = channel_moments(image)
    np.testing.assert_allclose(mean, (image / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (image / 255).std((0, 1, 2)), rtol=1e-9)
    assert channel_moments(np.full((2, 2, 2, 3), 7, np.uint8))[1] == (1 / 255,) * 3


def arrays(**changed):
    draw = np.random.RandomState(0)
    good = {
        "x_train": draw.randint(0, 256, (6, 5, 4, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": draw.randint(0, 256, (2, 5, 4, 3), np.uint8),
        "y_test": np.array([2, 0]),
    }
    return {k: v for k, v in (good | changed).items() if v is not None}


def test_npz_is_read_as_written(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    source = data.load(f"npz:{path}")
    np.testing.assert_array_equal(source.train.image, arrays()["x_train"])
    np.testing.assert_array_equal(source.test.label, [2, 0])
    assert source.test.label.dtype == np.int32
    assert source.spec.class_names == ("0", "1", "2") and source.spec.image_shape == (5, 4, 3)
    assert (source.spec.num_train, source.spec.num_test) == (6, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "has no array y_test"),
        ({"x_train": np.zeros((6, 5, 4, 3), np.float32)}, "x_train is float32, it must be uint8"),
        ({"x_train": np.zeros((6, 3, 5, 4), np.uint8)}, r"x_train has shape \(6, 3, 5, 4\)"),
        ({"x_test": np.zeros((2, 5, 4), np.uint8)}, r"x_test has shape \(2, 5, 4\)"),
        ({"x_test": np.zeros((2, 4, 4, 3), np.uint8)}, r"of x_test \(4, 4, 3\)"),
        ({"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test is em"),
        ({"y_train": np.arange(6.0)}, "y_train is float64, it must hold integers"),
        ({"y_train": np.zeros((6, 1), int)}, r"y_train has shape \(6, 1\)"),
        ({"y_train": np.array([0, 1, 2])}, r"y_train has shape \(3,\), it must be \(6,\)"),
        ({"y_train": np.array([-1, 1, 2, 0, 1, 2])}, "y_train has label -1"),
        ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, "no example of class 0"),
        ({"y_test": np.array([3, 0])}, "y_test has label 3, the classes of y_train are 0..2"),
        ({"y_train": np.array(["a"] * 6, dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_npz_says_what_is_wrong(tmp_path, changed, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**changed))
    with pytest.raises(ValueError, match=message):
        data.load(f"npz:{path}")


def test_npz_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        data.load(f"npz:{tmp_path}/absent.npz")
    for content in (b"", b"not an archive", b"PK\x03\x04 cut off"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as .npz"):
            data.load(f"npz:{tmp_path}/bad.npz")


@pytest.mark.parametrize(
    ("name", "hint"), [("cifar1", "did you mean 'cifar10'"), ("nzp:x", "did you mean 'npz:'")]
)
def test_unknown_name_gives_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        data.load(name)


def test_known_specs_are_consistent():
    for name, spec in KNOWN.items():
        assert spec.name == name
        assert len(set(spec.class_names)) == spec.num_classes
        assert len(spec.mean) == len(spec.std) == 3


def test_digits_need_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "from atkd_jax import data\n"
        "assert len(data.load('digits').train.label) == 1437\n"
        "try: data.load('cifar10')\n"
        "except ValueError as error: assert 'pip install tensorflow-cpu' in str(error)\n"
        "else: raise SystemExit('cifar10 was read without TensorFlow')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
