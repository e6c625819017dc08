"""Decodes, crops and resizes the bytes of an image file to [S, S, 3] uint8, in TensorFlow.

The format is found from the content, not from the name, and follows the rule of `image_file`.
TensorFlow decodes JPEGs, because it decodes a crop alone; Pillow decodes everything else and JPEGs
of four colours. A file that cannot be decoded raises `tf.errors.InvalidArgumentError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from atkd_jax.data import image_file
from atkd_jax.data.tf import import_tf

if TYPE_CHECKING:
    from tensorflow import Tensor

# Random resized crops: Szegedy et al. 2015, arXiv 1409.4842, section 6, with the usual ranges.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
HEAD = 4096  # bytes of a JPEG that are searched for metadata from its tables on


def random_window(shape: Tensor, seed: Tensor) -> Tensor:
    """A random part of an image of `shape` [3] -> int32 [4]: row, column, height, width.

    As in torchvision's RandomResizedCrop: the share of the area is uniform in AREA, the logarithm
    of width / height uniform in ASPECT, the place uniform; the first of ten draws that fits into
    the image is taken. If none fits, it is the largest centred part of an allowed aspect ratio.
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


def decoded(
    data: Tensor,
    jpeg: Callable[[Tensor, Tensor | None], Tensor],
    other: Callable[[Tensor], Tensor],
) -> Tensor:
    """Applies one of two functions to a file, depending on its format.

    Args:
      data: [] string, the file's bytes.
      jpeg: (stored shape [3], orientation 1..8 or None for upright) -> image, for JPEGs that
        TensorFlow can decode.
      other: [H, W, 3] uint8, upright -> image, for files that Pillow decodes.
    """
    tf, _ = import_tf()

    def pillow() -> Tensor:
        image = tf.numpy_function(_decode, [data], tf.uint8, stateful=False)
        return other(tf.ensure_shape(image, (None, None, 3)))

    def rare() -> Tensor:
        def by_colours() -> Tensor:  # TensorFlow interprets four colours differently from Pillow
            shape = tf.io.extract_jpeg_shape(data)
            return tf.cond(shape[2] == 4, pillow, lambda: jpeg(shape, orientation(data)))

        return tf.cond(tf.io.is_jpeg(data), by_colours, pillow)

    def plain() -> Tensor:
        shape = tf.io.extract_jpeg_shape(data)
        return tf.cond(shape[2] == 4, rare, lambda: jpeg(shape, None))

    if not tf.executing_eagerly():
        # A call, not inlined: TensorFlow also visits the inlined nodes of a branch that is not
        # taken, which cost 40 us per image.
        rare = tf.function(rare, autograph=False, experimental_attributes={"_noinline": True})
    return tf.cond(is_plain(data), plain, rare)


def is_plain(data: Tensor) -> Tensor:
    """[] bool: whether a file is a JPEG without EXIF or XMP, and so stored upright.

    False where only a longer look could decide: it recognizes JFIF files whose tables follow at
    once or after one other segment, such as a comment or a colour profile. That holds for
    47 of 50 photographs of ImageNet, where Pillow would take six times as long.

    Raises:
      tf.errors.InvalidArgumentError: the file has fewer than 24 bytes.
    """
    tf, _ = import_tf()
    size = tf.strings.length(data)
    jfif = tf.strings.substr(data, 0, 6) == b"\xff\xd8\xff\xe0\x00\x10"
    # Where a position lies behind the end, the message of `substr` would contain the file's bytes.
    second = tf.strings.substr(data, tf.minimum(20, size), 4)
    words = tf.io.decode_raw(second, tf.uint16, little_endian=False)
    marker, length = tf.unstack(tf.cast(words, tf.int32), 2)
    behind = tf.minimum(22 + length, size - 2)
    tables = tf.where(marker == 0xFFDB, 20, behind)
    found = tf.strings.substr(data, tables, 2) == b"\xff\xdb"
    head = tf.io.decode_raw(tf.strings.substr(data, tables, HEAD), tf.uint8)
    app1 = tf.reduce_any((head[:-1] == 0xFF) & (head[1:] == 0xE1))
    return jfif & found & (marker != 0xFFE1) & ~app1


def orientation(data: Tensor) -> Tensor:
    """[] int32, 1..8: the EXIF orientation of a JPEG, as Pillow finds it."""
    tf, _ = import_tf()
    turn = tf.numpy_function(_orientation, [data], tf.int32, stateful=False)
    return tf.ensure_shape(turn, ())


def _decode(data: bytes | np.ndarray) -> np.ndarray:
    return image_file.decode(_content(data))


def _orientation(data: bytes | np.ndarray) -> np.int32:
    try:
        with image_file.opened(_content(data)) as image:
            return np.int32(image_file.orientation(image))
    except Exception as error:  # TensorFlow turns a ValueError into InvalidArgumentError
        raise ValueError(f"Pillow cannot open it ({type(error).__name__})") from error


def _content(data: bytes | np.ndarray) -> bytes:
    """The bytes of a file: bytes in a graph, an array of one object in eager mode."""
    return np.asarray(data, object).item()


def upright_shape(shape: Tensor, turn: Tensor) -> Tensor:
    """Shape [3] of the upright image whose stored image has `shape`."""
    tf, _ = import_tf()
    return tf.where(_is(turn, image_file.TRANSPOSED), tf.gather(shape, [1, 0, 2]), shape)


def stored_window(window: Tensor, shape: Tensor, turn: Tensor) -> Tensor:
    """The window in the stored image of a window in the upright one; both are int32 [4].

    Args:
      window: row, column, height, width.
      shape: [3], of the stored image.
      turn: its orientation.
    """
    tf, _ = import_tf()
    y, x, height, width = tf.unstack(window)
    rows, columns, _ = tf.unstack(upright_shape(shape, turn))
    y = tf.where(_is(turn, image_file.FLIPPED), rows - y - height, y)
    x = tf.where(_is(turn, image_file.MIRRORED), columns - x - width, x)
    swapped = tf.stack([x, y, width, height])
    return tf.where(_is(turn, image_file.TRANSPOSED), swapped, tf.stack([y, x, height, width]))


def upright(image: Tensor, turn: Tensor) -> Tensor:
    """`image_file.upright` of [H, W, 3], in TensorFlow."""
    tf, _ = import_tf()

    def turned() -> Tensor:
        swap = _is(turn, image_file.TRANSPOSED)
        out = tf.cond(swap, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
        out = tf.cond(_is(turn, image_file.FLIPPED), lambda: out[::-1], lambda: out)
        return tf.cond(_is(turn, image_file.MIRRORED), lambda: out[:, ::-1], lambda: out)

    return tf.cond(turn == 1, lambda: image, turned)


def _is(turn: Tensor, kinds: Sequence[int]) -> Tensor:
    tf, _ = import_tf()
    return tf.reduce_any(turn == tf.constant(kinds))


def random_resized_crop(data: Tensor, seed: Tensor, image_size: int) -> Tensor:
    """A random window of the image, resized bilinearly to a square. Decodes only the window.

    Args:
      data: [] string, the file's bytes.
      seed: [2] int64, determines the window.
      image_size: S.

    Returns:
      [S, S, 3] uint8.
    """
    tf, _ = import_tf()

    def jpeg(shape: Tensor, turn: Tensor | None) -> Tensor:
        if turn is None:
            return tf.image.decode_and_crop_jpeg(data, random_window(shape, seed), channels=3)
        window = random_window(upright_shape(shape, turn), seed)
        window = stored_window(window, shape, turn)
        return upright(tf.image.decode_and_crop_jpeg(data, window, channels=3), turn)

    def other(image: Tensor) -> Tensor:
        y, x, height, width = tf.unstack(random_window(tf.shape(image), seed))
        return image[y : y + height, x : x + width]

    crop = decoded(data, jpeg, other)
    resized = tf.raw_ops.ResizeBilinear(
        images=crop[None], size=(image_size, image_size), half_pixel_centers=True
    )
    return tf.cast(resized[0] + 0.5, tf.uint8)  # rounds; tf.round would take longer


def shorter_side(image_size: int, crop_ratio: float) -> int:
    """The shorter side in pixels to which evaluation resizes before the centre crop."""
    return round(image_size / crop_ratio)


def resized_centre(data: Tensor, image_size: int, crop_ratio: float) -> Tensor:
    """The centre of the upright image, as by PyTorch's Resize and CenterCrop.

    The shorter side is resized to image_size / crop_ratio with antialiasing (Pillow's bilinear
    filter), and the centre is kept. Unlike here, PyTorch's own evaluation of ImageNet ignores the
    EXIF orientation.

    Args:
      data: [] string, the file's bytes.
      image_size: S.
      crop_ratio: 224 / 256 for the usual "resize 256, crop 224".

    Returns:
      [S, S, 3] uint8.
    """
    tf, _ = import_tf()

    def jpeg(_: Tensor, turn: Tensor | None) -> Tensor:
        # As Pillow decodes; TensorFlow's default is some percent faster and off by a grey level.
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return image if turn is None else upright(image, turn)

    image = decoded(data, jpeg, lambda image: image)
    size = tf.shape(image)[:2]
    shorter = shorter_side(image_size, crop_ratio)
    # PyTorch rounds the longer side down to whole pixels, so the two scales differ a little.
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
