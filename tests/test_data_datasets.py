"""Data sets as values: facts before loading, what is missing in words, options in their ranges."""

import dataclasses
import math

import numpy as np
import pytest
from images import picture, write_cinic, write_folder, write_tfds
from small_runs import write_npz

from atkd_jax import data, ranges
from atkd_jax.data import cifar_binary, folder, image_file, npz, tfds, tfds_datasets
from atkd_jax.data.info import IMAGENET_SIZES, KNOWN
from atkd_jax.errors import UserError

HOSTILE = [
    -1, 0, 1, 1.5, 2**31, 2**40, math.nan, math.inf, -math.inf, "", "a\0b", None, True, (), ("a",),
    [1, 2], {}, b"train",
]  # fmt: skip
NAMES = ["digits", "cifar10", "cifar100", "svhn", "cinic10", "imagenet2012", "npz:a", "folder:a",
         "tfds:a"]  # fmt: skip


def images(count, first=0, shape=(32, 32)):
    return [(picture(first + i, shape), i % 3) for i in range(count)]


def shrink(monkeypatch, name, num_train, num_test):
    """Small files of a published set become the official ones."""
    small = dataclasses.replace(KNOWN[name], num_train=num_train, num_test=num_test)
    monkeypatch.setitem(KNOWN, name, small)


def make_digits(path, monkeypatch):
    return data.Digits()


def make_npz(path, monkeypatch):
    return data.Npz(str(write_npz(path / "a.npz", train=12, test=6)))


def make_folder(path, monkeypatch):
    return data.Folder(write_folder(path))


def make_streamed_folder(path, monkeypatch):
    return data.Folder(write_folder(path), image_size=16)


def make_svhn(path, monkeypatch):
    shrink(monkeypatch, "svhn", 6, 2)
    monkeypatch.setattr(tfds_datasets, "SVHN_EXTRA", 4)
    splits = {"train": images(6), "extra": images(4, 50), "test": images(2, 100)}
    write_tfds(path, "svhn_cropped", "3.1.0", splits, 10, (32, 32, 3))
    return data.Svhn(extra=True)


def make_cinic10(path, monkeypatch):
    shrink(monkeypatch, "cinic10", 20, 10)
    monkeypatch.setattr(tfds_datasets, "CINIC10_VALIDATION", 10)
    write_cinic(path / "CINIC-10.tar.gz")
    data.Cinic10().prepare(str(path), str(path))
    return data.Cinic10(train="train+validation")


def make_cifar(path, monkeypatch):
    """The binary files, with 4 examples each."""
    layout, files = cifar_binary.LAYOUTS["cifar100"], {}
    (path / layout.folder).mkdir()
    for split, name in (("train", "train.bin"), ("test", "test.bin")):
        rows = np.random.RandomState(len(split)).randint(0, 100, (4, 3074), np.uint8)
        rows.tofile(path / layout.folder / name)
        md5 = cifar_binary.hashlib.md5(rows.tobytes()).hexdigest()
        files[split] = (cifar_binary.File(name, 4, md5),)
    monkeypatch.setitem(cifar_binary.LAYOUTS, "cifar100", dataclasses.replace(layout, **files))
    shrink(monkeypatch, "cifar100", 4, 4)
    return data.Cifar("cifar100")


def make_tfds(path, monkeypatch):
    splits = {"train": images(6), "validation": images(3, 50)}
    write_tfds(path, "tiny", "1.0.0", splits, 3, (32, 32, 3))
    return data.Tfds("tiny")


def make_streamed_tfds(path, monkeypatch):
    return dataclasses.replace(make_tfds(path, monkeypatch), image_size=16)


KINDS = {
    name.removeprefix("make_"): make
    for name, make in list(globals().items())
    if name.startswith("make_")
}
WITHOUT_TENSORFLOW = [
    name for name in KINDS if "tfds" not in name and name not in ("svhn", "cinic10")
]


@pytest.mark.parametrize("kind", KINDS)
def test_info_is_what_load_returns(kind, tmp_path, monkeypatch):
    dataset = KINDS[kind](tmp_path, monkeypatch)
    before = dataset.info(str(tmp_path))
    source = dataset.load(str(tmp_path), data.Share(2))
    assert isinstance(source, data.MemorySource) == dataset.in_memory
    facts, found = vars(before), vars(source.info)
    labels = facts.pop("train_label"), found.pop("train_label")
    assert facts == found
    if labels[0] is not None:
        np.testing.assert_array_equal(*labels)
    if dataset.in_memory:
        assert before.num_train == len(source.train.label) == len(source.train.image)
        assert before.num_test == len(source.test.label)
        np.testing.assert_array_equal(labels[1], source.train.label)


@pytest.mark.parametrize("kind", KINDS)
def test_check_decodes_nothing(kind, tmp_path, monkeypatch):
    dataset = KINDS[kind](tmp_path, monkeypatch)
    assert dataset.present(str(tmp_path))
    counts = dataset.info(str(tmp_path)).num_train, dataset.info(str(tmp_path)).num_test
    for module, function in (
        (npz, "_array"), (cifar_binary, "read"), (tfds, "read_split"), (tfds, "download"),
        (image_file, "decode"), (folder, "read"),
    ):  # fmt: skip
        monkeypatch.setattr(module, function, None)
    line = dataset.check(str(tmp_path))
    assert "\n" not in line
    if kind not in ("digits", "cifar"):
        assert f"{counts[0]} training and {counts[1]} test images" in line


@pytest.mark.parametrize("kind", WITHOUT_TENSORFLOW)
def test_what_needs_no_tensorflow_imports_none(kind, tmp_path, monkeypatch, no_tensorflow):
    dataset = KINDS[kind](tmp_path, monkeypatch)
    dataset.check(str(tmp_path))
    dataset.info(str(tmp_path))
    assert dataset.present(str(tmp_path))


@pytest.mark.parametrize(
    "dataset, num_train, num_test",
    [
        (data.Cifar("cifar10"), 50_000, 10_000),
        (data.Cifar("cifar100"), 50_000, 10_000),
        (data.Svhn(), 73_257, 26_032),
        (data.Svhn(extra=True), 73_257 + 531_131, 26_032),
        (data.Cinic10(), 90_000, 90_000),
        (data.Cinic10(train="train+validation"), 180_000, 90_000),
        (data.ImageNet(), 1_281_167, 50_000),
    ],
    ids=str,
)
def test_published_facts_need_no_files(dataset, num_train, num_test, tmp_path, no_tensorflow):
    info = dataset.info(str(tmp_path / "nowhere"))
    assert (info.num_train, info.num_test) == (num_train, num_test)
    assert not dataset.present(str(tmp_path / "nowhere"))


def test_imagenet_is_streamed_and_weighed():
    info = data.ImageNet(image_size=160).info()
    assert not data.ImageNet().in_memory and info.image_shape == (160, 160, 3)
    assert info.num_classes == 1000 and data.ImageNet().file_bytes == 115_439
    assert data.Cifar("cifar10").file_bytes == 0
    assert (info.num_train, info.num_test) == IMAGENET_SIZES


@pytest.mark.parametrize(
    "dataset, message",
    [
        (data.Cifar("cifar10"), r"is not prepared in .*\.prepare cifar10; or put cifar-10-binary"),
        (data.Svhn(), r"svhn_cropped is not prepared in .*; run: .*\.prepare svhn"),
        (data.Cinic10(), r"is not prepared in .*; run: .*\.prepare cinic10"),
        (data.ImageNet(), r"is not prepared in .*; run: .*\.prepare imagenet2012"),
        (data.Tfds("beans"), r"is not prepared in .*; run: .*\.prepare beans"),
        (data.Tfds("no_such_set"), "knows no data set 'no_such_set'"),
        (data.Npz("/nowhere.npz"), "/nowhere.npz cannot be read as .npz: No such file"),
        (data.Folder("/nowhere"), "there is no folder /nowhere"),
    ],
    ids=str,
)
def test_check_names_what_is_missing(dataset, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "download", None)
    assert not dataset.present(str(tmp_path))
    with pytest.raises(UserError, match=message) as told:
        dataset.check(str(tmp_path))
    assert "\n" not in str(told.value)


def test_check_looks_at_the_splits_that_an_option_adds(tmp_path, monkeypatch):
    dataset = make_svhn(tmp_path, monkeypatch)
    assert "10 training and 2 test images" in dataset.check(str(tmp_path))
    assert "6 training and 2 test images" in data.Svhn().check(str(tmp_path))
    monkeypatch.setattr(tfds_datasets, "SVHN_EXTRA", 5)
    with pytest.raises(UserError, match=r"it holds \(10, 2\) examples instead of \(11, 2\)"):
        dataset.check(str(tmp_path))
    next((tmp_path / "svhn_cropped/3.1.0").glob("*extra*")).unlink()
    with pytest.raises(UserError, match="1 files are missing, first svhn_cropped-extra"):
        dataset.check(str(tmp_path))
    data.Svhn().check(str(tmp_path))
    with pytest.raises(UserError, match="tiny has no split 'val', but train, validation"):
        dataclasses.replace(make_tfds(tmp_path, monkeypatch), test="val").check(str(tmp_path))


@pytest.mark.parametrize("kind", ["digits", "npz", "cifar"])
def test_images_that_stay_as_they_are_refuse_another_size_everywhere(kind, tmp_path, monkeypatch):
    dataset = dataclasses.replace(KINDS[kind](tmp_path, monkeypatch), image_size=64)
    for ask in (dataset.info, dataset.check, dataset.load):
        with pytest.raises(UserError, match="and stay so: leave image_size=64 out"):
            ask(str(tmp_path))


def test_a_name_with_options_is_a_value():
    assert data.create("svhn", extra=True, image_size=0) == data.Svhn(extra=True)
    assert data.create("cifar10") == data.Cifar("cifar10") != data.create("cifar100")
    assert data.create("npz:a:b") == data.Npz("a:b")
    assert data.create("imagenet2012", image_size=0) == data.ImageNet(image_size=224)
    assert data.create("tfds:beans", test="test") == data.Tfds("beans", test="test")
    assert len({data.create(name) for name in NAMES * 2}) == len(NAMES)
    with pytest.raises(UserError, match="unknown data set 'cifar11'; did you mean 'cifar10"):
        data.Cifar("cifar11")


@pytest.mark.parametrize("name", NAMES)
def test_every_option_refuses_hostile_values_in_one_line(name):
    kind = type(data.create(name))
    options = ranges.of(kind)
    assert "image_size" in options and options.keys() <= data.OPTIONS.keys()
    for option, range in options.items():
        default = getattr(kind, option)
        assert default is None or range.holds(default)
        for value in HOSTILE:
            holds = range.holds(value) or (value is None and default is None)
            if option == "image_size" and type(value) is int and value == 0:
                holds = True  # the images' own size, or that of the data set
            if holds and not (name == "cinic10" and option == "train"):
                data.create(name, **{option: value})
                continue
            with pytest.raises(UserError) as told:
                data.create(name, **{option: value})
            line = str(told.value)
            assert "\n" not in line and (option in line or "training set of cinic10" in line)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_gives_the_nearest(name):
    for option, near in (("crop_ration", "crop_ratio"), ("imagesize", "image_size")):
        with pytest.raises(UserError, match=f"unknown option of {name}: {option!r}; ") as told:
            data.create(name, **{option: 1})
        if near in ranges.of(type(data.create(name))):
            assert f"did you mean {near!r}" in str(told.value)
    for required in ("path", "name"):
        with pytest.raises(UserError, match="unknown option"):
            data.create(name, **{required: "other"})


def test_options_are_those_of_the_data_sets():
    assert sorted(data.OPTIONS) == ["crop_ratio", "extra", "image_size", "test", "train"]


def test_the_public_names_exist():
    assert all(hasattr(data, name) for name in data.__all__)
