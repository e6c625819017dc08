"""Every augmentation equals a NumPy or Pillow twin, and draws what it says it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from atkd_jax.data import augment as A
from atkd_jax.data import geometry
from atkd_jax.data.augment import Augment, augment
from atkd_jax.models.network import normalize

IMAGES = np.random.RandomState(0).randint(0, 256, (16, 12, 12, 3), np.uint8)
POSITION = jnp.arange(16, dtype=jnp.int32)
EVERYTHING = Augment(pad=2, flip=True, rotate=15.0, brightness=0.2)


def keys(n):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(n))


def smooth(seed=0, size=16):
    """An image whose neighbours are alike, as in photographs: [size, size, 3] uint8."""
    small = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def test_nothing_asked_for_only_scales():
    out = augment(jax.random.key(0), IMAGES, POSITION, Augment())
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, IMAGES.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crop_equals_numpy(mode):
    crop = jax.jit(lambda offset: geometry.crop(jnp.asarray(IMAGES[0]), offset, 3, mode))
    twin_mode = {"zero": "constant", "reflect": "reflect"}[mode]
    padded = np.pad(IMAGES[0], ((3, 3), (3, 3), (0, 0)), twin_mode)
    for row, column in [(0, 0), (0, 6), (6, 0), (6, 6), (3, 3), (2, 5)]:
        twin = padded[row : row + 12, column : column + 12]
        np.testing.assert_array_equal(crop(jnp.array([row, column])), twin)


def test_rotation_equals_pillow():
    turn = jax.jit(geometry.rotate)
    for size in (16, 15):
        image = smooth(1, size)
        for degrees in (0, 7.5, -15, 90, 33, -120, 180):
            twin = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))
            ours = np.asarray(turn(image.astype(np.float32), jnp.float32(degrees)))
            # Pillow rounds to grey levels; where a centre falls on the border itself, the last bit
            # of the angle decides whether a pixel is black.
            border = (twin == 0).all(-1) ^ (ours == 0).all(-1)
            assert border.sum() <= 4, (size, degrees)
            assert np.abs(ours - twin)[~border].max() <= 1.0, (size, degrees)


def test_brightness_equals_pillow():
    policy = Augment(brightness=0.5)
    out = augment(jax.random.key(3), IMAGES, POSITION, policy)
    factors = [
        float(A.draw_factor(jax.random.fold_in(jax.random.key(3), i), 0.5)) for i in range(16)
    ]
    for image, ours, factor in zip(IMAGES, np.asarray(out), factors, strict=True):
        twin = np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))
        np.testing.assert_allclose(ours * 255, twin, atol=1.0)


def test_whole_augmentation_equals_numpy_twin():
    """Crop and flip of a batch, from the parameters that the keys say."""
    policy = Augment(pad=2, flip=True)
    rng = jax.random.key(4)
    out = np.asarray(augment(rng, IMAGES, POSITION, policy))
    flips = 0
    for i, image in enumerate(IMAGES):
        key = jax.random.fold_in(rng, i)
        row, column = np.asarray(A.draw_offset(key, 2))
        if A.draw_flip(key):
            image, flips = image[:, ::-1], flips + 1
        twin = np.pad(image, ((2, 2), (2, 2), (0, 0)))[row : row + 12, column : column + 12]
        np.testing.assert_array_equal(np.rint(out[i] * 255), twin)
    assert 0 < flips < 16


def test_padding_is_black_before_normalisation():
    image = normalize(jnp.zeros((2, 3, 3, 3)), (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    np.testing.assert_allclose(image[0, 0, 0], (-2.5, -4.0, -1.0), rtol=1e-6)


def test_parameters_have_the_named_distributions():
    n = 8000
    offset = np.asarray(jax.vmap(lambda k: A.draw_offset(k, 4))(keys(n)))
    counts = np.stack([np.bincount(offset[:, axis], minlength=9) for axis in (0, 1)])
    assert counts.shape == (2, 9)  # 0..8 and nothing else
    # Nine equal cells: chi-square with 8 degrees of freedom is below 26.1 in 99.9 % of draws.
    assert (((counts - n / 9) ** 2 / (n / 9)).sum(1) < 26.1).all()
    assert abs(np.corrcoef(offset.T)[0, 1]) < 0.05
    angle = np.asarray(jax.vmap(lambda k: A.draw_angle(k, 15.0))(keys(n)))
    assert -15 <= angle.min() < -14.9 and 14.9 < angle.max() <= 15
    assert abs(angle.mean()) < 0.5 and abs(angle.std() - 30 / 12**0.5) < 0.2
    factor = np.asarray(jax.vmap(lambda k: A.draw_factor(k, 0.2))(keys(n)))
    assert 0.8 <= factor.min() < 0.801 and 1.199 < factor.max() <= 1.2
    assert abs(factor.mean() - 1) < 0.01
    flip = np.asarray(jax.vmap(A.draw_flip)(keys(n)))
    assert abs(flip.mean() - 0.5) < 0.02
    # The draws of one example do not follow each other.
    for a in (angle, factor, flip):
        for b in (offset[:, 0], offset[:, 1]):
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_result_does_not_depend_on_how_the_batch_is_spread():
    run = jax.jit(functools.partial(augment, policy=EVERYTHING))
    whole = np.asarray(run(jax.random.key(5), IMAGES, POSITION))
    assert whole.dtype == np.float32 and whole.shape == IMAGES.shape
    assert whole.min() >= 0 and whole.max() <= 1
    parts = [run(jax.random.key(5), IMAGES[i : i + 8], POSITION[i : i + 8]) for i in (0, 8)]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert not np.allclose(whole, run(jax.random.key(6), IMAGES, POSITION))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"pad": -1}, "pad -1"),
        ({"pad_mode": "mirror"}, "pad_mode 'mirror'"),
        ({"rotate": 200.0}, "rotate 200.0"),
        ({"brightness": 1.5}, "brightness 1.5"),
        ({"randaugment": -1}, "randaugment -1"),
        ({"magnitude": 31.0}, "magnitude 31.0"),
    ],
)
def test_wrong_parameters_are_named(field, message):
    with pytest.raises(ValueError, match=message):
        Augment(**field)


def test_reflection_larger_than_the_image_is_named():
    with pytest.raises(ValueError, match="too large to reflect"):
        augment(jax.random.key(0), IMAGES, POSITION, Augment(pad=12, pad_mode="reflect"))
