"""Streams: every example counted, whatever its file or its host, resumed without decoding."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from images import picture, write_folder, write_tfds

from atkd_jax import data
from atkd_jax.data import folder, stream
from atkd_jax.data.records import FolderRecords
from atkd_jax.data.tf import import_tf

SIZE = 8
TRAIN, TEST = 26, 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), TRAIN, TEST, size=None)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A TFDS set of JPEGs in four files for training and two for testing."""
    path = tmp_path_factory.mktemp("tfds")
    splits = {
        "train": [(picture(i, (40 + i % 7, 30)), i % 3) for i in range(TRAIN)],
        "validation": [(picture(100 + i), i % 3) for i in range(TEST)],
    }
    write_tfds(path, "tiny_jpeg", "1.0.0", splits, 3, shards=4)
    return path


@pytest.fixture(params=["folder", "tfds"])
def load(request, files, tfds_dir):
    """load(batch_size, seed=0, host_index=0, host_count=1) of either kind of set."""

    def load(*share, **options):
        options = {"image_size": SIZE, "share": data.Share(*share)} | options
        if request.param == "folder":
            return data.load(f"folder:{files}", **options)
        return data.load("tfds:tiny_jpeg", data_dir=str(tfds_dir), **options)

    return load


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.slow
def test_an_epoch_shows_every_example_at_most_once(load):
    source = load(4)
    batches = list(source.train(0))
    assert len(batches) == source.steps_per_epoch == TRAIN // 4
    index = np.concatenate([b.index for b in batches])
    assert len(np.unique(index)) == 24 and index.min() >= 0 and index.max() < TRAIN
    for batch in batches:
        assert batch.image.shape == (4, SIZE, SIZE, 3) and batch.image.dtype == np.uint8
        assert batch.label.dtype == batch.index.dtype == np.int32 and batch.mask is None
    same(batches, list(load(4).train(0)))
    assert (index != np.concatenate([b.index for b in source.train(1)])).any()
    assert (index != np.concatenate([b.index for b in load(4, 1).train(0)])).any()


def test_index_is_the_examples_own_number(load, files):
    """Labels by index are the same in every epoch, and are the data set's."""
    label = np.full(TRAIN, -1)
    for epoch in range(2):
        for batch in load(2).train(epoch):
            met = label[batch.index] >= 0
            np.testing.assert_array_equal(label[batch.index][met], batch.label[met])
            label[batch.index] = batch.label
    source = load(2)
    expected = source.info.train_label
    np.testing.assert_array_equal(label, np.arange(TRAIN) % 3 if expected is None else expected)


def test_a_resumed_epoch_goes_on_with_the_next_example(load, monkeypatch):
    whole = list(load(4).train(2))
    decoded = []
    original = stream.random_resized_crop

    def counted(data, seed, size):
        tf, _ = import_tf()
        index = tf.py_function(lambda i: decoded.append(int(i)) or i, [seed[1]], tf.int64)
        index.set_shape(())
        return original(data, tf.stack([seed[0], index]), size)

    monkeypatch.setattr(stream, "random_resized_crop", counted)
    same(whole[3:], list(load(4).train(2, 3)))
    assert decoded and not set(decoded) & set(np.concatenate([b.index for b in whole[:3]]).tolist())


@pytest.mark.slow
def test_windows_are_a_function_of_the_example(load):
    """An image is cut in the same way whatever the batch size and the number of hosts."""
    one = {int(i): x for b in load(13).train(0) for i, x in zip(b.index, b.image, strict=True)}
    for host in range(2):
        for batch in load(4, 0, host, 2).train(0):
            for i, image in zip(batch.index, batch.image, strict=True):
                if int(i) in one:
                    np.testing.assert_array_equal(image, one[int(i)])


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 3])
def test_hosts_share_an_epoch_and_never_an_example(load, hosts):
    sources = [load(4, 0, host, hosts) for host in range(hosts)]
    epochs = [list(source.train(0)) for source in sources]
    assert {len(batches) for batches in epochs} == {TRAIN // (4 * hosts)}
    index = np.concatenate([b.index for batches in epochs for b in batches])
    assert len(np.unique(index)) == len(index) == TRAIN // (4 * hosts) * 4 * hosts


@pytest.mark.parametrize(("hosts", "size"), [(1, 2), (1, 5), (2, 2), (6, 2)])
def test_evaluation_shows_every_example_once_on_any_hosts(load, hosts, size):
    seen, steps = [], set()
    for host in range(hosts):
        batches = list(load(size, 0, host, hosts).test())
        steps.add(len(batches))
        for batch in batches:
            assert batch.image.shape == (size, SIZE, SIZE, 3) and batch.mask.dtype == bool
            seen += batch.index[batch.mask].tolist()
    assert sorted(seen) == list(range(TEST)) and len(steps) == 1


def test_a_folder_gives_the_same_global_batches_on_any_number_of_hosts(files):
    def batches(hosts):
        shares = [data.Share(8 // hosts, 5, host, hosts) for host in range(hosts)]
        epochs = [
            data.load(f"folder:{files}", image_size=SIZE, share=share).train(1) for share in shares
        ]
        return [np.concatenate([part.index for part in parts]) for parts in zip(*epochs)]  # noqa: B905

    same(batches(1), batches(2))


def broken_folder(tmp_path, *names):
    path = write_folder(tmp_path, TRAIN, TEST, size=None)
    for name in names:
        (tmp_path / name).write_bytes(b"this is no image")
    return f"folder:{path}"


def test_a_corrupt_image_is_skipped_counted_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stream, "MAX_CORRUPT", 0.1)
    options = {"share": data.Share(4), "image_size": SIZE}
    clean = list(data.load(broken_folder(tmp_path / "a"), **options).train(0))
    name = broken_folder(tmp_path / "b", "train/bee/004.jpg")
    bad = 10  # the second of bee, after the nine of ant
    source = data.load(name, **options)
    with caplog.at_level(logging.WARNING):
        batches = list(source.train(0))
    assert "train/bee/004.jpg cannot be decoded and is skipped (1 so far)" in caplog.text
    assert [n[-17:] for n in source.corrupt.names["train"]] == ["train/bee/004.jpg"]
    assert len(batches) == source.steps_per_epoch
    replaced = 0
    for ours, right in zip(batches, clean, strict=True):
        for row in range(4):
            if right.index[row] == bad:
                replaced += 1
                assert ours.index[row] in right.index and ours.index[row] != bad
            else:
                np.testing.assert_array_equal(ours.image[row], right.image[row])
                assert ours.index[row] == right.index[row]
    assert replaced == 1
    # A run that is resumed after it, or by a process that has not met it, sees the same.
    same(batches[2:], list(source.train(0, 2)))
    same(batches[2:], list(data.load(name, **options).train(0, 2)))


def test_a_corrupt_test_image_is_shown_black_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "MAX_CORRUPT", 0.2)
    name = broken_folder(tmp_path, "val/ant/003.jpg")
    source = data.load(name, share=data.Share(4), image_size=SIZE)
    batches = list(source.test())
    index = np.concatenate([b.index[b.mask] for b in batches])
    np.testing.assert_array_equal(index, np.arange(TEST))
    assert batches[0].image[1].max() == 0 and batches[0].image[0].max() > 0
    assert len(source.corrupt.names["test"]) == 1


def test_too_many_corrupt_images_stop_the_run(tmp_path):
    name = broken_folder(tmp_path, "train/bee/004.jpg")
    source = data.load(name, share=data.Share(4), image_size=SIZE)
    with pytest.raises(ValueError, match=r"1 of 26 train images .* more than 0.1%; the first is"):
        list(source.train(0))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_that_is_gone_is_named_and_nobody_told_to_delete(tmp_path, split):
    deep = tmp_path / ("a" * 200) / ("b" * 200)  # its name alone is longer than a message was
    path = write_folder(deep, TRAIN, TEST, size=None)
    source = data.load(f"folder:{path}", share=data.Share(4), image_size=SIZE)
    file = deep / {"train": "train", "test": "val"}[split] / "bee/004.jpg"
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read any more: .*No such file") as caught:
        list(source.train(0) if split == "train" else source.test())
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert "elete" not in str(caught.value) and "prepare" not in str(caught.value)


def test_a_disk_that_fails_later_is_told_in_full(tmp_path, monkeypatch):
    """What the files themselves do not tell any more, TensorFlow's message does."""
    files = folder.Files(np.array([str(tmp_path / "a.jpg")], object), np.zeros(1, np.int32))
    (tmp_path / "a.jpg").write_bytes(b"there")
    reason = "x" * 1000 + "/far/away.jpg; Input/output error"
    error = FolderRecords(files, files).unreadable("train", reason)
    assert str(error).endswith(reason)


def test_pictures_to_look_at_are_of_many_classes(load, files):
    image, label = load(2).sample(4)
    assert image.shape == (4, SIZE, SIZE, 3)
    np.testing.assert_array_equal(label, [0, 1, 2, 0])
    whole = list(load(5).test())[0]
    for one, k in zip(image, label, strict=True):
        same_class = whole.image[whole.label == k]
        assert any(np.array_equal(one, other) for other in same_class)
    image, label = load(2).sample(100)
    assert len(label) == TEST
    image, label = load(2).sample(2)
    np.testing.assert_array_equal(label, [0, 1])


def test_damaged_tfds_files_are_an_error(tmp_path):
    splits = {"train": [(picture(i), 0) for i in range(8)], "test": [(picture(9), 0)]}
    write_tfds(tmp_path, "cut_jpeg", "1.0.0", splits, 1)
    options = {"data_dir": str(tmp_path), "share": data.Share(2), "image_size": SIZE}
    file = next((tmp_path / "cut_jpeg/1.0.0").glob("*train*"))
    content = file.read_bytes()
    file.write_bytes(content[:-500])
    with pytest.raises(
        ValueError, match="prepared cut_jpeg in .* is damaged: split train, "
    ) as caught:
        list(data.load("tfds:cut_jpeg", **options).train(0))
    assert "run: python -m atkd_jax.data.prepare cut_jpeg" in str(caught.value)
    assert "{{" not in str(caught.value) and "\n" not in str(caught.value)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="prepared cut_jpeg in .* is damaged: split train, "):
        list(data.load("tfds:cut_jpeg", **options).train(0))
    file.unlink()
    with pytest.raises(ValueError, match="1 files are missing, first cut_jpeg-train"):
        data.load("tfds:cut_jpeg", **options)


def test_labels_out_of_range_are_an_error(load):
    source = load(4)
    few = dataclasses.replace(source.info, class_names=("ant", "bee"))
    with pytest.raises(ValueError, match=r"have label 2, not in 0\.\.1"):
        list(dataclasses.replace(source, info=few).train(0))


def test_imagenet_that_is_not_whole_is_an_error(tmp_path):
    splits = {"train": [(picture(i), 0) for i in range(4)], "validation": [(picture(9), 0)]}
    write_tfds(tmp_path, "imagenet2012", "5.1.0", splits, 1000)
    with pytest.raises(ValueError, match=r"\(4, 1\) examples instead of \(1281167, 50000\)"):
        data.load("imagenet2012", data_dir=str(tmp_path), share=data.Share(2))


def test_a_host_without_a_batch_is_an_error(load):
    with pytest.raises(ValueError, match=r"host 5 of 9 gets \d of 26 training examples, fewer"):
        load(4, 0, 5, 9)
    with pytest.raises(ValueError, match="crop_ratio 1.5"):
        load(4, crop_ratio=1.5)
