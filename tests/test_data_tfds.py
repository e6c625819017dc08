"""Prepared TFDS sets: read whole, checked against their facts, and told how to repair."""

import dataclasses

import numpy as np
import pytest
import requests
from images import picture, write_cinic, write_tfds

from atkd_jax import data
from atkd_jax.data import prepare, tfds, tfds_datasets
from atkd_jax.data.info import KNOWN

TRAIN, TEST = 12, 5


def rows(count, first=0, classes=10):
    return [(picture(first + i, (32, 32)), i % classes) for i in range(count)]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 12 + 5 images in TFDS's layout; returns the folder of its files."""
    small = dataclasses.replace(KNOWN["cifar10"], num_train=TRAIN, num_test=TEST)
    monkeypatch.setitem(KNOWN, "cifar10", small)
    splits = {"train": rows(TRAIN), "test": rows(TEST, 100)}
    write_tfds(tmp_path, "cifar10", "3.0.2", splits, 10, (32, 32, 3))
    return tmp_path / "cifar10" / "3.0.2"


def test_a_prepared_set_is_read_in_order(cifar):
    source = data.load("cifar10", data_dir=str(cifar.parent.parent))
    np.testing.assert_array_equal(source.train.image, [image for image, _ in rows(TRAIN)])
    np.testing.assert_array_equal(source.test.image, [image for image, _ in rows(TEST, 100)])
    np.testing.assert_array_equal(source.train.label, np.arange(TRAIN) % 10)
    np.testing.assert_array_equal(source.info.train_label, source.train.label)
    assert source.train.label.dtype == np.int32
    assert source.info.class_names[3] == "cat"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "dataset_info.json").unlink(), "its dataset_info.json is missing"),
        (lambda d: next(d.glob("*train*")).unlink(), "split train"),
        (lambda d: cut(next(d.glob("*train*"))), "split train"),
        (lambda d: cut(next(d.glob("*test*"))), "split test"),
    ],
)
def test_half_a_set_says_how_to_repair_it(cifar, damage, message):
    damage(cifar)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("cifar10", data_dir=str(cifar.parent.parent))
    assert "Move that folder away and run: python -m atkd_jax.data.prepare cifar10" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_wrong_counts_and_labels_are_errors(cifar, monkeypatch):
    data_dir = str(cifar.parent.parent)
    right = KNOWN["cifar10"]
    monkeypatch.setitem(KNOWN, "cifar10", dataclasses.replace(right, num_train=13))
    with pytest.raises(ValueError, match="holds 12 examples instead of 13"):
        data.load("cifar10", data_dir=data_dir)
    few = dataclasses.replace(right, class_names=right.class_names[:7])
    monkeypatch.setitem(KNOWN, "cifar10", few)
    with pytest.raises(ValueError, match=r"label 9, not in 0\.\.6"):
        data.load("cifar10", data_dir=data_dir)


def unreachable(*args, **kwargs):
    raise requests.ConnectionError("no network")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_a_missing_set_without_a_network_names_the_command(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(requests, "head", unreachable)
    ours = f"python -m atkd_jax.data.prepare {name}"
    with pytest.raises(ValueError, match=f"could not be downloaded .*{ours}"):
        data.load(name, data_dir=str(tmp_path))
    with pytest.raises(SystemExit, match="cannot be reached"):
        prepare.main([name, "--data_dir", str(tmp_path)])


def test_archives_brought_by_hand_are_checked(tmp_path):
    """TFDS takes an archive from manual_dir under its upstream name, and verifies its checksum."""
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(SystemExit, match="could not be downloaded .*(?i:checksum)"):
        prepare.main(["cifar10", "--data_dir", str(tmp_path), "--manual_dir", str(tmp_path)])


def test_prepare_is_done_when_the_set_is_there(cifar, capsys):
    prepare.main(["cifar10", "--data_dir", str(cifar.parent.parent)])
    assert "is prepared: test 5, train 12" in capsys.readouterr().out


def test_an_unknown_tfds_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="knows no data set 'no_such_set'"):
        data.load("tfds:no_such_set", data_dir=str(tmp_path))


def test_any_small_tfds_set_is_read_into_memory(tmp_path):
    grey = [(image[..., :1], label) for image, label in rows(6, classes=3)]
    splits = {"train": grey, "validation": grey[:3]}
    write_tfds(tmp_path, "tiny_grey", "1.0.0", splits, 3, (32, 32, 1))
    source = data.load("tfds:tiny_grey", data_dir=str(tmp_path))
    assert source.info.num_classes == 3 and source.info.num_test == 3
    np.testing.assert_array_equal(source.train.image, [np.repeat(i, 3, 2) for i, _ in grey])
    with pytest.raises(ValueError, match="no split 'test'"):
        data.load("tfds:tiny_grey", data_dir=str(tmp_path), test="test")
    with pytest.raises(ValueError, match="unknown option of tfds:tiny_grey: 'tets'"):
        data.load("tfds:tiny_grey", data_dir=str(tmp_path), tets="test")


def test_cinic10_is_prepared_from_its_archive(tmp_path, monkeypatch, capsys):
    small = dataclasses.replace(KNOWN["cinic10"], num_train=20, num_test=10)
    monkeypatch.setitem(KNOWN, "cinic10", small)
    monkeypatch.setattr(tfds_datasets, "CINIC10_VALIDATION", 10)
    where = ["cinic10", "--data_dir", str(tmp_path / "tfds"), "--manual_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"put https://datashare.*CINIC-10.tar.gz into manual_dir"):
        prepare.main(where)
    write_cinic(tmp_path / "CINIC-10.tar.gz")
    prepare.main(where)
    assert "test 10, train 20, validation 10" in capsys.readouterr().out
    source = data.load("cinic10", data_dir=str(tmp_path / "tfds"))
    assert source.train.image.shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(source.train.label), [2] * 10)
    # Every training picture is there under its class, the grey one with three equal channels.
    seen = {
        image.tobytes(): label
        for image, label in zip(source.train.image, source.train.label, strict=True)
    }
    for number in range(20):
        image = picture(number, (32, 32))
        image = np.repeat(image[..., :1], 3, 2) if number == 0 else image
        assert seen[image.tobytes()] == number // 2
    both = data.load("cinic10", data_dir=str(tmp_path / "tfds"), train="train+validation")
    assert both.info.num_train == len(both.train.label) == 30
    with pytest.raises(ValueError, match="unknown training set of cinic10 'validation'"):
        data.load("cinic10", data_dir=str(tmp_path / "tfds"), train="validation")


def test_names_of_tfds_are_ours_where_they_differ():
    assert data.Svhn().tfds_name == "svhn_cropped"
    assert data.create("tfds:mnist").tfds_name == "mnist"
    assert tfds.prepare_command("svhn_cropped").endswith("prepare svhn")
