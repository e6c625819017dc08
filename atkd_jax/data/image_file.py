"""An image file as a network is to see it: upright, RGB, 8 bits a channel.

One rule for images in memory and in streams; `examples/device/classify.py` repeats it for devices.
The orientation of EXIF is honoured, of 16 bits the upper eight count, alpha is dropped and not
blended, and palettes, grey, black and white and CMYK become RGB.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

# Phones take photographs of 200 megapixels, which Pillow would refuse; TensorFlow stops here.
MAX_PIXELS = 2**29
ORIENTATION = 0x0112  # the tag's number, CIPA DC-008 (EXIF 2.32), 4.6.4
TRANSPOSED, FLIPPED, MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)

Image.MAX_IMAGE_PIXELS = None  # `opened` has a limit of its own
# Damaged metadata are none: Pillow warns of them, for every image again.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(file: Any) -> np.ndarray:
    """The pixels, [H, W, 3] uint8.

    Args:
      file: a path, or the file's bytes.

    Raises:
      ValueError: it cannot be decoded, or is larger than MAX_PIXELS.
    """
    try:
        with opened(file) as image:
            turn = orientation(image)
            if image.mode.startswith("I"):  # 16 bits, which `convert` would clip to 255
                grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                pixels = np.repeat(grey[..., None], 3, axis=2)
            else:
                image.info.pop("transparency", None)  # Pillow warns of what will be lost
                pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # of a damaged file, Pillow raises whatever its decoders raise
        raise ValueError(_reason(error)) from error
    return np.ascontiguousarray(upright(pixels, turn))


def size(file: Any) -> tuple[int, int]:
    """(H, W) of the upright image, of which only the header is read.

    Raises:
      ValueError: it is no image, or larger than MAX_PIXELS.
    """
    try:
        with opened(file) as image:
            width, height = image.size
            turn = 1 if _is_plain_png(image) else orientation(image)
            return (width, height) if turn in TRANSPOSED else (height, width)
    except Exception as error:
        raise ValueError(_reason(error)) from error


def opened(file: Any) -> Image.Image:
    """The image, not decoded yet; ValueError if it is larger than MAX_PIXELS."""
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    return image


def _is_plain_png(image: Image.Image) -> bool:
    """Whether it is a PNG without metadata, for which Pillow would decode all pixels."""
    if image.format != "PNG":
        return False
    file, kind = image.fp, b""
    file.seek(8)
    while kind not in (b"IEND", b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
        head = file.read(8)
        if len(head) < 8:  # it is cut off
            return True
        kind = head[4:]
        file.seek(int.from_bytes(head[:4]) + 4, 1)  # its content, and a checksum
    return kind == b"IEND"


def orientation(image: Image.Image) -> int:
    """How the stored image has to be turned, 1..8 as in EXIF; 1, not at all, if that is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as many kinds as there are kinds of damage
        return 1
    return found if found in range(1, 9) else 1


def upright(pixels: Any, turn: int) -> Any:
    """Turns stored pixels [H, W, 3] as their orientation says: [H, W, 3] or [W, H, 3]."""
    if turn in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if turn in FLIPPED:
        pixels = pixels[::-1]
    if turn in MIRRORED:
        pixels = pixels[:, ::-1]
    return pixels


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
