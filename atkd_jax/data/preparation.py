"""Evaluation's preprocessing of an image file, as data that accompanies an exported network.

`examples/device/classify.py` follows it on a device.
"""

from __future__ import annotations

from typing import TypedDict

from atkd_jax.data.decode import shorter_side
from atkd_jax.data.stream import Source, StreamSource


class Preparation(TypedDict):
    """The steps in their order; `cover` and `crop` are [height, width]."""

    orientation: str
    colours: str
    cover: list[int]
    filter: str
    crop: list[int]


def describe(source: Source) -> Preparation:
    """The preparation of a data set's test images, as JSON can hold it.

    The image is turned upright, converted to 8-bit RGB, resized so that it just covers `cover` (its
    sides rounded down to whole pixels), and cropped to `crop` around its centre. Images in memory
    are used as they are, which is the same: all of them have the size of `cover` and `crop`.
    """
    crop = list(source.info.image_shape[:2])
    cover = crop
    if isinstance(source, StreamSource):
        cover = [shorter_side(crop[0], source.crop_ratio)] * 2
    return {
        "orientation": "upright as EXIF says",
        "colours": "RGB, of 16 bits the upper 8, alpha dropped",
        "cover": cover,
        "filter": "bilinear, antialiased",
        "crop": crop,
    }
