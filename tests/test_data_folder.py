"""Folders of images: listed, read into memory or handed to the stream, and told what is wrong."""

import logging

import numpy as np
import pytest
from images import encoded, picture, write_folder
from PIL import Image

from atkd_jax import data
from atkd_jax.data import folder


def test_images_of_one_size_are_read_into_memory(tmp_path):
    path = write_folder(tmp_path, train=7, test=4)
    source = data.load(f"folder:{path}")
    assert isinstance(source, data.MemorySource)
    assert source.spec.class_names == ("ant", "bee", "cat")
    assert source.train.image.shape == (7, 30, 40, 3)
    np.testing.assert_array_equal(source.train.label, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(source.spec.train_label, source.train.label)
    # Sorted by class, then by name: the second image of "ant" is picture 3.
    with Image.open(tmp_path / "train/ant/003.jpg") as image:
        np.testing.assert_array_equal(source.train.image[1], np.asarray(image))


def test_images_of_many_sizes_or_too_many_are_streamed(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "many", size=None)
    source = data.load(f"folder:{path}", share=data.Share(4))
    assert isinstance(source, data.StreamSource) and source.spec.image_shape == (224, 224, 3)
    same = write_folder(tmp_path / "same")
    source = data.load(f"folder:{same}", share=data.Share(4), image_size=16)
    assert isinstance(source, data.StreamSource) and source.spec.image_shape == (16, 16, 3)
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 1000)
    assert isinstance(data.load(f"folder:{same}", share=data.Share(4)), data.StreamSource)
    with pytest.raises(ValueError, match="needs share="):
        data.load(f"folder:{same}")


def test_every_kind_of_image_becomes_rgb(tmp_path):
    rgb = picture(0)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    cases = {
        "grey.jpg": encoded(grey),
        "grey.png": encoded(grey, "PNG"),
        "deep.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "cmyk.jpg": encoded(Image.fromarray(rgb).convert("CMYK"), quality=95),
        "palette.png": encoded(Image.fromarray(rgb).quantize(256), "PNG"),
        "alpha.png": encoded(np.dstack([rgb, grey]), "PNG"),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        image = folder.decode(str(tmp_path / name)).astype(int)
        assert image.shape == (30, 40, 3), name
        twin = rgb if name[0] in "cpa" else np.repeat(grey[..., None], 3, 2)
        assert np.abs(image - twin).mean() < 6, name


def break_file(path):
    path.write_bytes(path.read_bytes()[:200])


def test_few_corrupt_images_are_left_out_and_named(tmp_path, monkeypatch, caplog):
    path = write_folder(tmp_path, train=24, test=10)
    break_file(tmp_path / "train/bee/004.jpg")
    monkeypatch.setattr(folder, "MAX_CORRUPT", 0.05)
    caplog.set_level(logging.ERROR)  # as on the command line, where it is said all the same
    caplog.handler.setLevel(logging.NOTSET)
    source = data.load(f"folder:{path}")
    assert source.spec.num_train == 23 and len(source.train.label) == 23
    assert "train/bee/004.jpg cannot be decoded" in caplog.text


def test_many_corrupt_images_are_an_error(tmp_path):
    path = write_folder(tmp_path)
    break_file(tmp_path / "train/bee/004.jpg")
    with pytest.raises(ValueError, match=r"1 of 24 images .* first is .*bee/004.jpg"):
        data.load(f"folder:{path}")


def test_other_files_are_left_out_and_named(tmp_path, caplog):
    path = write_folder(tmp_path)
    (tmp_path / "train/ant/notes.txt").write_text("hello")
    (tmp_path / "train/ant/.hidden").write_text("hello")
    with caplog.at_level(logging.WARNING):
        assert data.load(f"folder:{path}").spec.num_train == 24
    assert "1 files are no" in caplog.text and "ant/notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "train").rename(root / "x"), "has no folder train"),
        (lambda root: (root / "val").rename(root / "x"), "has no folder test or val"),
        (lambda root: (root / "val/bee").rename(root / "bee"), "'bee' is in train and not in val"),
        (lambda root: (root / "train/ant").rename(root / "a"), "'ant' is in val and not in train"),
        (lambda root: [f.unlink() for f in (root / "train/bee").iterdir()], "train/bee is empty"),
    ],
)
def test_folder_says_what_is_wrong(tmp_path, damage, message):
    path = write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(f"folder:{path}")


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder /nowhere"):
        data.load("folder:/nowhere")
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train has no folders"):
        data.load(f"folder:{tmp_path}")
