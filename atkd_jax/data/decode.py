"""From the bytes of an image file to [S, S, 3] uint8, in TensorFlow on the host.

JPEG, PNG, BMP or GIF by content, whatever the file is called; grey and CMYK become RGB, alpha is
dropped. A file that cannot be decoded raises `tf.errors.InvalidArgumentError`.
"""

from __future__ import annotations

import math

from atkd_jax.data.prepared import import_tf

# Random resized crops: Szegedy et al. 2015, arXiv 1409.4842, section 6; the ranges everyone uses.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10


def random_window(shape, seed):
    """A random part of an image of `shape` [3] -> int32 [4]: row, column, height, width.

    As in torchvision's RandomResizedCrop: its share of the area is uniform in AREA, the logarithm
    of width / height uniform in ASPECT, its place uniform; of ten draws the first that fits into
    the image counts. If none does, it is the largest centred part of an allowed aspect ratio.
    (TensorFlow's own sampler favours small windows: 0.37 of a 400x300 image on average, not 0.43.)
    """
    tf, _ = import_tf()
    size = tf.cast(shape[:2], tf.float32)  # [2]: height, width
    u = tf.random.stateless_uniform([4, ATTEMPTS], seed)
    area = (AREA[0] + (AREA[1] - AREA[0]) * u[0]) * size[0] * size[1]
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    half_log = (low + (high - low) * u[1]) / 2
    window = tf.round(tf.sqrt(area) * tf.exp(tf.stack([-half_log, half_log])))  # [2, ATTEMPTS]
    fits = tf.reduce_all(window <= size[:, None], 0)
    first = tf.argmax(fits)
    largest = tf.minimum(size, tf.round(size[::-1] * [1 / ASPECT[0], ASPECT[1]]))
    window = tf.where(fits[first], window[:, first], largest)
    start = tf.where(fits[first], u[2:, 0] * (size - window + 1), (size - window) / 2)
    return tf.cast(tf.concat([tf.floor(start), window], 0), tf.int32)


def random_resized_crop(data, seed, image_size: int):
    """A random window of the image, decoded alone and resized bilinearly to a square.

    Args:
      data: [] string, the file's bytes.
      seed: [2] int64, decides the window.
      image_size: S.

    Returns:
      [S, S, 3] uint8.
    """
    tf, _ = import_tf()

    def jpeg():
        window = random_window(tf.io.extract_jpeg_shape(data), seed)
        return tf.image.decode_and_crop_jpeg(data, window, channels=3)

    def other():
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        y, x, height, width = tf.unstack(random_window(tf.shape(image), seed))
        return image[y : y + height, x : x + width]

    crop = tf.cond(tf.io.is_jpeg(data), jpeg, other)
    resized = tf.raw_ops.ResizeBilinear(
        images=crop[None], size=(image_size, image_size), half_pixel_centers=True
    )
    return tf.cast(resized[0] + 0.5, tf.uint8)  # rounds; tf.round would take longer


def resized_centre(data, image_size: int, crop_ratio: float):
    """The centre of the image as PyTorch's evaluation sees it: Resize, then CenterCrop.

    The shorter side is resized to image_size / crop_ratio with antialiasing (Pillow's bilinear
    filter), and the centre of it is kept.

    Args:
      data: [] string, the file's bytes.
      image_size: S.
      crop_ratio: 224 / 256 for the usual "resize 256, crop 224".

    Returns:
      [S, S, 3] uint8.
    """
    tf, _ = import_tf()
    image = tf.cond(
        tf.io.is_jpeg(data),
        # As Pillow decodes; TensorFlow's default is some percent faster and a grey level off.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    size = tf.shape(image)[:2]
    shorter = round(image_size / crop_ratio)
    # PyTorch cuts the longer side off to whole pixels, so that the two scales differ a little.
    resized = tf.cast(shorter * size // tf.reduce_min(size), tf.float32)
    offset = tf.round((resized - image_size) / 2)
    out = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=(image_size, image_size),
        scale=resized / tf.cast(size, tf.float32),
        translation=-offset,
        kernel_type="triangle",
        antialias=True,
    )
    return tf.cast(tf.clip_by_value(tf.round(out[0]), 0, 255), tf.uint8)
