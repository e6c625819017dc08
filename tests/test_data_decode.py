"""Decoding: the same pictures as Pillow shows, the same windows as torchvision draws."""

import io

import numpy as np
import pytest
from image_kinds import kinds, with_orientation
from images import encoded, picture
from PIL import Image

from atkd_jax.data import decode, image_file
from atkd_jax.data.tf import import_tf

SIZE = 8


def twin(path, size, ratio):
    """What PyTorch's Resize and CenterCrop make of a file, with Pillow."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    shorter = round(size / ratio)
    if width < height:
        new = shorter, int(shorter * height / width)
    else:
        new = int(shorter * width / height), shorter
    left, top = (int(round((n - size) / 2)) for n in new)
    image = image.resize(new, Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(61, 40), (40, 61), (24, 24), (200, 90)])
def test_evaluation_sees_what_pillow_sees(tmp_path, shape):
    for name, options in (("a.jpg", {"quality": 90}), ("b.png", {"format": "PNG"})):
        path = tmp_path / name
        path.write_bytes(encoded(picture(1, shape), **options))
        ours = decode.resized_centre(path.read_bytes(), 28, 28 / 32).numpy()
        assert np.abs(ours.astype(int) - twin(path, 28, 28 / 32)).max() <= 1, (name, shape)


def test_training_crop_is_the_window_resized(tmp_path):
    """The window is decoded alone, as if it had been cut out of the whole image."""
    tf, _ = import_tf()
    image = picture(2, (64, 48))
    for content in (encoded(image, "PNG"), encoded(image, quality=95)):
        whole = tf.io.decode_image(content, channels=3)
        for number in range(5):
            seed = tf.constant([7, number], tf.int64)
            y, x, height, width = decode.random_window(tf.shape(whole), seed).numpy()
            crop = whole[y : y + height, x : x + width]
            expected = np.rint(tf.image.resize(crop, (SIZE, SIZE)).numpy())
            ours = decode.random_resized_crop(content, seed, SIZE).numpy()
            assert np.abs(ours - expected).max() <= 1 + 2 * (content[:2] == b"\xff\xd8")


@pytest.mark.parametrize("turn", range(1, 9))
def test_training_crop_of_a_turned_jpeg_is_the_window_of_what_it_shows(turn):
    """The window is drawn in the upright image, so that a photograph and its turned twin agree."""
    tf, _ = import_tf()
    image = picture(2, (64, 48))
    content = with_orientation(image, turn, quality=95)
    whole = image_file.upright(tf.io.decode_jpeg(content).numpy(), turn)
    for number in range(5):
        seed = tf.constant([7, number], tf.int64)
        y, x, height, width = decode.random_window(tf.constant(image.shape), seed).numpy()
        crop = whole[y : y + height, x : x + width]
        expected = np.rint(tf.image.resize(crop, (SIZE, SIZE)).numpy())
        ours = decode.random_resized_crop(content, seed, SIZE).numpy()
        assert np.abs(ours - expected).max() <= 3, (turn, number)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_window_of_the_upright_image_is_found_in_the_stored_one(turn):
    tf, _ = import_tf()
    stored = np.arange(5 * 7).reshape(5, 7, 1)
    upright = image_file.upright(stored, turn)
    shape = tf.constant(stored.shape)
    assert decode.upright_shape(shape, turn).numpy().tolist() == list(upright.shape)
    for window in ([0, 0, 2, 3], [1, 2, 3, 2], [2, 1, 3, 4]):
        y, x, height, width = window
        expected = upright[y : y + height, x : x + width]
        y, x, height, width = decode.stored_window(tf.constant(window), shape, turn).numpy()
        ours = decode.upright(tf.constant(stored[y : y + height, x : x + width]), turn)
        np.testing.assert_array_equal(ours, expected)


def test_metadata_before_the_orientation_are_skipped():
    """Comments, profiles and what cameras write, with and without JFIF; and XMP alone."""
    image = picture(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = bytes(range(256)) * 300  # two segments
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    for more, expected in (
        ({}, 1), ({"comment": b"hello"}, 1), ({"icc_profile": profile}, 1),
        ({"exif": exif}, 6), ({"exif": exif, "comment": b"hello", "icc_profile": profile}, 6),
        ({"xmp": xmp}, 6),
    ):  # fmt: skip
        content = encoded(image, **more)
        without_jfif = content[:2] + content[20:]
        for data in (content, without_jfif):
            assert decode.orientation(data).numpy() == expected, more
            assert expected == 1 or not decode.is_plain(data), more
            with Image.open(io.BytesIO(data)) as file:
                assert image_file.orientation(file) == expected, more


def test_plain_jpegs_are_found_without_pillow():
    """A missed one costs time alone; a file that is turned, or no JPEG, must not be taken for one.

    Whatever the length of the first segment claims.
    """
    image = picture(1)
    plain, noted = encoded(image), encoded(image, comment=b"hello")
    assert decode.is_plain(plain) and decode.is_plain(noted)
    assert decode.is_plain(encoded(image, icc_profile=bytes(5000)))
    assert decode.is_plain(encoded(image[..., 0]))
    late = noted[:20] + plain[20:89] + with_orientation(image, 6)[2:]
    beyond = noted[:22] + b"\xff\xff" + noted[24:]
    for other in (late, beyond, plain[:2] + plain[20:], encoded(image, "PNG")):
        assert not decode.is_plain(other)


def windows(shape, count=2000):
    tf, _ = import_tf()
    seeds = tf.stack([tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64)], 1)
    one = tf.function(lambda seed: decode.random_window(tf.constant(shape), seed))
    return tf.map_fn(one, seeds, tf.int32).numpy().T


def test_windows_have_the_named_distribution():
    y, x, height, width = windows([300, 400, 3])
    assert (y >= 0).all() and (x >= 0).all()
    assert (y + height <= 300).all() and (x + width <= 400).all()
    area, aspect = height * width / (300 * 400), width / height
    assert 0.079 < area.min() < 0.09 and 0.95 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.76 and 1.31 < aspect.max() < 1.35
    # Windows that do not fit are drawn again: 50,000 runs of torchvision's loop, written in plain
    # Python, give a mean share of 0.434 and a mean log aspect ratio of 0.031.
    assert abs(area.mean() - 0.434) < 0.015 and abs(np.log(aspect).mean() - 0.031) < 0.015
    for start, room in ((y, 300 - height), (x, 400 - width)):
        place = start[room > 20] / room[room > 20]
        assert abs(place.mean() - 0.5) < 0.02 and place.min() < 0.02 and place.max() > 0.98


@pytest.mark.parametrize(
    ("shape", "window"), [([10, 400, 3], [0, 193, 10, 13]), ([400, 10, 3], [193, 0, 13, 10])]
)
def test_a_window_of_an_image_too_narrow_for_any_is_its_centre(shape, window):
    for got in windows(shape, 20).T:
        assert got.tolist() == window


def test_every_kind_of_image_is_decoded():
    for name, (content, image) in kinds((40, 40)).items():
        ours = decode.resized_centre(content, 40, 1.0).numpy()
        np.testing.assert_allclose(ours, image_file.decode(content), atol=1, err_msg=name)
        assert np.abs(ours.astype(int) - image).mean() < 6, name
        crop = decode.random_resized_crop(content, np.array([0, 0]), SIZE)
        assert crop.shape == (SIZE, SIZE, 3)


@pytest.mark.slow
def test_what_cannot_be_decoded_is_an_invalid_argument():
    """Which the stream takes for a damaged image, and not for a damaged disk."""
    tf, _ = import_tf()
    whole = [encoded(picture(0)), encoded(picture(0), "PNG"), with_orientation(picture(0), 6)]
    for content in [b"", b"no image", b"\xff\xd8", *(data[:-200] for data in whole)]:
        data = tf.constant(content)
        for function in (
            lambda data: decode.resized_centre(data, 8, 1.0),
            lambda data: decode.random_resized_crop(data, tf.constant([0, 0], tf.int64), 8),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError):
                tf.function(function)(data)


def test_a_header_that_pillow_refuses_is_an_invalid_argument_too():
    tf, _ = import_tf()
    with pytest.raises(tf.errors.InvalidArgumentError, match="Pillow cannot open it"):
        tf.function(decode.orientation)(tf.constant(b"\xff\xd8\xff\xe1 and no more"))


def test_metadata_behind_the_tables_turn_an_image_as_well():
    """EXIF asks for the beginning of the file; Pillow, and so a device, reads it anywhere."""
    tf, _ = import_tf()
    turned, plain = with_orientation(picture(0), 6), encoded(picture(0))
    start = turned.index(b"\xff\xe1")
    exif = turned[start : start + 2 + int.from_bytes(turned[start + 2 : start + 4])]
    tables = plain.index(b"\xff\xdb")
    end = tables + 2 + int.from_bytes(plain[tables + 2 : tables + 4])
    late = plain[:end] + exif + plain[end:]
    assert decode.orientation(tf.constant(plain)) == 1
    assert decode.orientation(tf.constant(late)) == 6
    assert decode.is_plain(plain) and not decode.is_plain(late)
    with Image.open(io.BytesIO(late)) as image:
        assert image.getexif()[0x0112] == 6
