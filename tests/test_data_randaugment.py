"""RandAugment's operations are Pillow's, and are drawn as the paper says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from images import picture
from PIL import Image, ImageEnhance, ImageOps

from atkd_jax.data import randaugment as R
from atkd_jax.data.augment import Augment, augment

APPLY = jax.jit(R.apply)
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def twin(image, name, strength, sign):
    """The operation with Pillow, by the table of torchvision's RandAugment."""
    width, height = image.size
    bilinear = Image.Resampling.BILINEAR
    affine = {
        "identity": (1, 0, 0, 0, 1, 0),
        "shear_x": (1, sign * 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * strength, 1, 0),
        "translate_x": (1, 0, sign * 150 / 331 * width * strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 150 / 331 * height * strength),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], bilinear)
    if name == "rotate":
        return image.rotate(sign * 30 * strength, bilinear)
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(1 + sign * 0.9 * strength)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * strength))
    if name == "solarize":
        return ImageOps.solarize(image, 255 * (1 - strength))
    return {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}[name](image)


@pytest.mark.parametrize("name", R.OPERATIONS)
def test_operation_equals_pillow(name):
    changed = False
    for number in (1, 2, 3):
        image = picture(number, (32, 24))
        if number == 2:
            image = image // 2 + 40  # does not use all grey levels
        for strength in (0.3, 0.7, 1.0):
            for sign in (1.0, -1.0):
                right = np.asarray(twin(Image.fromarray(image), name, strength, sign)).astype(float)
                ours = APPLY(
                    image.astype(np.float32),
                    R.NUMBER[name],
                    np.float32(strength),
                    np.float32(sign),
                )
                assert np.abs(np.asarray(ours) - right).max() <= 1, (number, strength, sign)
                changed |= np.abs(right - image).max() > 5
    assert changed == (name != "identity")


def test_a_uniform_image_survives():
    image = np.full((24, 32, 3), 77, np.float32)
    for name in ("autocontrast", "equalize", "contrast", "sharpness"):
        ours = APPLY(image, R.NUMBER[name], np.float32(1.0), np.float32(1.0))
        np.testing.assert_array_equal(ours, image)


def test_every_operation_is_drawn_equally_often():
    def draw(key):
        return [R.draw(jax.random.fold_in(key, i)) for i in range(2)]

    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(5000))
    first, second = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))
    for number, sign in (first, second):
        count = np.bincount(number, minlength=14)
        # Fourteen equal cells: chi-square with 13 degrees is below 34.5 in 99.9 % of draws.
        assert len(count) == 14 and ((count - 5000 / 14) ** 2 / (5000 / 14)).sum() < 34.5
        assert set(sign) == {-1.0, 1.0} and abs(sign.mean()) < 0.05
    assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.05


@pytest.mark.slow
def test_one_image_after_the_other_equals_all_side_by_side():
    """What a CPU does with a batch is what an accelerator does."""
    image = np.stack([picture(i, (12, 12)) for i in range(16)]).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 16)
    run = jax.jit(jax.vmap(lambda key, x: R.randaugment(key, x, 2, 15.0)))
    side_by_side = jax.jit(jax.vmap(R.apply, (0, 0, None, 0)))
    expected = image
    for i in range(2):
        number, sign = jax.vmap(lambda key, i=i: R.draw(jax.random.fold_in(key, i)))(keys)
        expected = side_by_side(expected, number, np.float32(0.5), sign)
    np.testing.assert_array_equal(run(keys, image), expected)


def test_augmented_batch_stays_in_range_and_changes():
    image = np.stack([picture(i, (12, 12)) for i in range(16)])
    policy = Augment(randaugment=2, magnitude=15.0)
    run = jax.jit(functools.partial(augment, policy=policy))
    out = np.asarray(run(jax.random.key(0), image, jnp.arange(16)))
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
    different = np.abs(out - image / 255).max((1, 2, 3)) > 0.05
    assert different.mean() > 0.6
    half = run(jax.random.key(0), np.concatenate([image[8:], image[8:]]), jnp.arange(16) % 8 + 8)
    np.testing.assert_allclose(half[:8], out[8:], atol=1e-6)
