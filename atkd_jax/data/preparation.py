"""How evaluation makes a network's input of an image file, as data, so that others can repeat it.

It goes with an exported network: `examples/device/classify.py` follows it on a device.
"""

from __future__ import annotations

from typing import Any

from atkd_jax.data.decode import shorter_side
from atkd_jax.data.memory import MemorySource
from atkd_jax.data.stream import StreamSource


def describe(source: MemorySource | StreamSource) -> dict[str, Any]:
    """The preparation of a data set's test images, in the order of the steps.

    The image is turned upright, made RGB of 8 bits, resized so that it just covers `cover`, its
    sides rounded down to whole pixels, and cut to `crop` around its centre. Images in memory are
    used as they are, which is the same: all of them have the size of `cover` and `crop`.

    Returns:
      What JSON can hold; `cover` and `crop` are [height, width].
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
