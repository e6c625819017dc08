"""Folders of images: listed, read into memory or handed to the stream, and told what is wrong."""

import logging
import os

import numpy as np
import pytest
from image_kinds import with_orientation
from images import encoded, picture, write_folder
from PIL import Image

from atkd_jax import data
from atkd_jax.data import folder, image_file


def test_images_of_one_size_are_read_into_memory(tmp_path):
    path = write_folder(tmp_path, train=7, test=4)
    source = data.load(f"folder:{path}")
    assert isinstance(source, data.MemorySource)
    assert source.info.class_names == ("ant", "bee", "cat")
    assert source.train.image.shape == (7, 30, 40, 3)
    np.testing.assert_array_equal(source.train.label, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(source.info.train_label, source.train.label)
    # Sorted by class, then by name: the second image of "ant" is picture 3.
    with Image.open(tmp_path / "train/ant/003.jpg") as image:
        np.testing.assert_array_equal(source.train.image[1], np.asarray(image))


def test_image_size_streams_what_would_fit_in_memory(tmp_path):
    path = write_folder(tmp_path)
    source = data.load(f"folder:{path}", share=data.Share(4), image_size=16)
    assert isinstance(source, data.StreamSource) and source.info.image_shape == (16, 16, 3)
    with pytest.raises(ValueError, match="needs share="):
        data.load(f"folder:{path}", image_size=16)
    assert isinstance(data.load(f"folder:{path}", image_size=0), data.MemorySource)


def test_images_that_differ_in_size_need_a_size(tmp_path):
    path = write_folder(tmp_path)
    odd = tmp_path / "train/bee/004.jpg"
    odd.write_bytes(encoded(picture(4, (41, 30))))
    message = (
        r"differ in size \(width x height\): 33 of 40x30, 1 of 41x30, such as .*bee/004.jpg;"
        r" .* add --config.data.options.image_size=N"
    )
    with pytest.raises(ValueError, match=message):
        data.load(f"folder:{path}")
    source = data.load(f"folder:{path}", share=data.Share(4), image_size=32)
    assert source.info.image_shape == (32, 32, 3)
    (tmp_path / "val/bee/001.jpg").write_bytes(encoded(picture(4, (50, 30))))
    with pytest.raises(ValueError, match="32 of 40x30, .*, and 1 sizes more;"):
        data.load(f"folder:{path}")


def test_images_that_are_too_many_for_memory_need_a_size(tmp_path, monkeypatch):
    path = write_folder(tmp_path)
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"34 images of 40x30 need .* add --config.*image_size=N"):
        data.load(f"folder:{path}")
    assert data.load(f"folder:{path}", share=data.Share(4), image_size=32)


def test_the_size_is_that_of_the_upright_image(tmp_path):
    path = write_folder(tmp_path)
    turned = with_orientation(picture(3, (40, 30)), 6)
    (tmp_path / "train/ant/003.jpg").write_bytes(turned)
    source = data.load(f"folder:{path}")
    np.testing.assert_array_equal(source.train.image[1], image_file.decode(turned))
    (tmp_path / "train/ant/006.jpg").write_bytes(encoded(picture(3, (30, 40))))
    with pytest.raises(ValueError, match="33 of 40x30, 1 of 30x40"):
        data.load(f"folder:{path}")


def break_file(path):
    path.write_bytes(path.read_bytes()[:200])


def test_few_corrupt_images_are_left_out_and_named(tmp_path, monkeypatch, caplog):
    path = write_folder(tmp_path, train=24, test=10)
    break_file(tmp_path / "train/bee/004.jpg")
    monkeypatch.setattr(folder, "MAX_CORRUPT", 0.05)
    caplog.set_level(logging.ERROR)  # as on the command line, where it is said all the same
    caplog.handler.setLevel(logging.NOTSET)
    source = data.load(f"folder:{path}")
    assert source.info.num_train == 23 and len(source.train.label) == 23
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
        assert data.load(f"folder:{path}").info.num_train == 24
    assert "1 files are no" in caplog.text and "ant/notes.txt" in caplog.text


@pytest.mark.parametrize("size", [0, 16])
def test_only_files_that_can_be_read_count(tmp_path, caplog, size):
    """In memory and in a stream: links into nowhere, folders called album.png, pipes."""
    path = write_folder(tmp_path)
    ant = tmp_path / "train/ant"
    (ant / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(ant / "pipe.png")
    (ant / "loop.png").symlink_to(ant / "loop.png")
    (ant / "long.png").symlink_to(300 * "x")
    (ant / "linked.jpg").symlink_to(tmp_path / "train/bee/001.jpg")
    for name in ("album.png", "nested"):
        (ant / name).mkdir()
        (ant / name / "inside.jpg").write_bytes(encoded(picture(0)))
    (tmp_path / "train/loose.jpg").write_bytes(encoded(picture(0)))
    with caplog.at_level(logging.WARNING):
        source = data.load(f"folder:{path}", share=data.Share(4), image_size=size)
    assert source.info.num_train == 25
    for line in (
        "2 folders inside of classes are not read, the first is ant/album.png",
        "4 files cannot be read and are left out, the first is ant/gone.jpg",
        "1 files lie beside the folders of the classes and are left out, the first is loose.jpg",
    ):
        assert line in caplog.text
    if size:
        assert len(list(source.train(0))) == 6


def test_files_of_others_are_left_out(tmp_path, caplog, monkeypatch):
    path = write_folder(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("train/ant/003.jpg"))
    assert data.load(f"folder:{path}").info.num_train == 23  # root would read it all the same
    assert "1 files cannot be read and are left out, the first is ant/003.jpg" in caplog.text


def test_a_class_without_files_tells_what_it_has(tmp_path):
    path = write_folder(tmp_path)
    for file in (tmp_path / "train/bee").iterdir():
        file.unlink()
    (tmp_path / "train/bee/more").mkdir()
    (tmp_path / "train/bee/gone.png").symlink_to("nowhere")
    message = "train/bee is empty: .*1 folders inside of .* are not read; 1 files cannot be read"
    with pytest.raises(ValueError, match=message):
        data.load(f"folder:{path}")


def test_a_validation_set_beside_a_test_set_is_said_to_be_unused(tmp_path, caplog):
    path = write_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    write_folder(tmp_path, train=0)
    with caplog.at_level(logging.WARNING):
        assert data.load(f"folder:{path}").info.num_test == 10
    assert f"{path}: tests on test; val is not used" in caplog.text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("two\nlines", "control characters"),
        ("tab\t", "control characters"),
        ("separator\u2028", "line breaks"),
        (os.fsdecode(b"latin1 \xe9"), "no UTF-8"),
    ],
)
def test_names_that_cannot_be_written_down_are_no_classes(tmp_path, name, why):
    path = write_folder(tmp_path, classes=("ant", name))
    with pytest.raises(ValueError, match=f"has {why} in it; rename the folder") as caught:
        folder.find(path)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_names_of_every_language_are_classes(tmp_path):
    names = ("$_$", "50%_$$", "Äpfel & Birnen", "日本", "👩\u200d🔬")
    path = write_folder(tmp_path, train=10, classes=names)
    assert set(folder.find(path).class_names) == set(names)


@pytest.mark.parametrize("size", [0, 16])
def test_files_and_folders_need_no_utf8_names(tmp_path, size, caplog):
    root = tmp_path / os.fsdecode(b"photos \xff")
    path = write_folder(root)
    strange = root / "train/ant" / os.fsdecode(b"\xe9t\xe9\n.jpg")
    (root / "train/ant/003.jpg").rename(strange)
    (root / "train/ant/000.jpg").rename(root / "train/ant" / os.fsdecode(b"\xe8.txt"))
    source = data.load(f"folder:{path}", share=data.Share(4), image_size=size)
    assert source.info.num_train == 23
    source.info.name.encode()
    caplog.text.encode()
    if size:
        index = np.concatenate([batch.index for epoch in range(3) for batch in source.train(epoch)])
        assert set(index.tolist()) == set(range(23))
    strange.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"\\udce9t\\udce9\\n.jpg") as caught:
        source = data.load(f"folder:{path}", share=data.Share(4), image_size=size)
        [_ for epoch in range(3) for _ in source.train(epoch)]
    str(caught.value).encode()


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
