"""A part of the training images: equally many of every class, the same ones for a seed."""

import numpy as np
import pytest
from images import write_folder
from small_runs import write_npz

from atkd_jax import data
from atkd_jax.data.subset import Subset, choose


def test_classes_get_equally_many_as_far_as_there_are_any():
    label = np.repeat([0, 1, 2], [50, 3, 47])
    counts = np.bincount(label[choose(label, 30, 0)])
    np.testing.assert_array_equal(counts, [14, 3, 13])
    assert set(np.bincount(label[choose(label, 7, 0)])) == {2, 3}


def test_more_images_include_fewer_and_a_seed_chooses_others():
    label = np.arange(100) % 10
    few, more = choose(label, 20, 3), choose(label, 45, 3)
    assert set(few) < set(more)
    assert sorted(few) == list(few)
    assert set(choose(label, 20, 4)) != set(few)
    np.testing.assert_array_equal(choose(label, 100, 3), np.arange(100))


def test_the_subset_has_the_rows_and_facts_of_its_data_set(tmp_path):
    whole = data.Npz(str(write_npz(tmp_path / "a.npz", train=40, test=8)))
    part = Subset(images=12, seed=1).of(whole)
    source, all_of_it = part.load(), whole.load()
    rows = choose(all_of_it.train.label, 12, 1)
    np.testing.assert_array_equal(source.train.image, all_of_it.train.image[rows])
    np.testing.assert_array_equal(source.train.label, all_of_it.train.label[rows])
    np.testing.assert_array_equal(source.info.train_label, source.train.label)
    np.testing.assert_array_equal(source.test.image, all_of_it.test.image)
    assert source.info.num_train == part.info().num_train == 12
    assert (source.info.mean, source.info.std) == (all_of_it.info.mean, all_of_it.info.std)
    assert part.check() == f"{whole.check()}; trains on 12 of them"
    assert part.present() and Subset().of(whole) is whole


@pytest.mark.parametrize("images", [3, 41])
def test_as_many_images_as_classes_and_no_more_than_there_are(images, tmp_path):
    part = Subset(images).of(data.Npz(str(write_npz(tmp_path / "a.npz", train=40, classes=4))))
    with pytest.raises(ValueError, match=rf"data\.subset\.images={images} is not in 4\.\.40: "):
        part.load()


def test_a_stream_has_no_subset(tmp_path):
    with pytest.raises(ValueError, match="needs a data set that fits in memory"):
        Subset(6).of(data.Folder(write_folder(tmp_path), image_size=16))
