"""Decoding: the same pictures as Pillow shows, the same windows as torchvision draws."""

import numpy as np
import pytest
from images import encoded, picture
from PIL import Image

from atkd_jax.data import decode
from atkd_jax.data.prepared import import_tf

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
    rgb = picture(0, (40, 40))
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    cases = [
        (encoded(grey), grey),
        (encoded(grey, "PNG"), grey),
        (encoded(Image.fromarray(rgb).convert("CMYK"), quality=95), rgb),
        (encoded(np.dstack([rgb, grey]), "PNG"), rgb),
    ]
    for content, image in cases:
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        ours = decode.resized_centre(content, 40, 1.0).numpy()
        assert np.abs(ours.astype(int) - image).mean() < 6
        crop = decode.random_resized_crop(content, np.array([0, 0]), SIZE)
        assert crop.shape == (SIZE, SIZE, 3)
