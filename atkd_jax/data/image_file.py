"""Decodes an image file to upright RGB of 8 bits per channel.

The same rule holds for images in memory and in streams; `examples/device/classify.py` repeats it
for devices. The EXIF orientation is applied, 16-bit channels keep their upper eight bits, alpha is
dropped and not blended, and palettes, grey, black and white and CMYK become RGB.
"""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from atkd_jax.errors import UserError

File = str | os.PathLike[str] | bytes  # a path, or the content of a file

# Above Pillow's limit, since phones take photographs of 200 megapixels; TensorFlow's own limit.
MAX_PIXELS = 2**29
ORIENTATION = 0x0112  # the tag's number, CIPA DC-008 (EXIF 2.32), 4.6.4
TRANSPOSED, FLIPPED, MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)

Image.MAX_IMAGE_PIXELS = None  # `opened` applies MAX_PIXELS instead
# Damaged metadata are ignored; Pillow would warn once per image.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(file: File) -> np.ndarray:
    """The pixels, [H, W, 3] uint8.

    Args:
      file: a path, or the content of the file.

    Raises:
      UserError: it cannot be decoded, or is larger than MAX_PIXELS.
    """
    try:
        with opened(file) as image:
            turn = orientation(image)
            if image.mode.startswith("I"):  # 16 bits, which `convert` would clip to 255
                grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                pixels = np.repeat(grey[..., None], 3, axis=2)
            else:
                image.info.pop("transparency", None)  # else Pillow warns that it is lost
                pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow passes on whatever its decoders raise
        raise UserError(_reason(error)) from error
    return np.ascontiguousarray(upright(pixels, turn))


def size(file: File) -> tuple[int, int]:
    """(H, W) of the upright image. Reads only the header.

    Raises:
      UserError: it is no image, or larger than MAX_PIXELS.
    """
    try:
        with opened(file) as image:
            width, height = image.size
            turn = 1 if _is_plain_png(image) else orientation(image)
            return (width, height) if turn in TRANSPOSED else (height, width)
    except Exception as error:
        raise UserError(_reason(error)) from error


def opened(file: File) -> Image.Image:
    """The image, not decoded yet.

    Raises:
      UserError: it is larger than MAX_PIXELS.
    """
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise UserError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    return image


def _is_plain_png(image: Image.Image) -> bool:
    """Whether it is a PNG without EXIF; Pillow would decode all pixels to look for it."""
    if not isinstance(image, PngImageFile) or image.fp is None:
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
    """The EXIF orientation of the stored image, 1..8; 1 (upright) if the metadata are damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of many types, one per kind of damage
        return 1
    return found if found in range(1, 9) else 1


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Applies the orientation to stored pixels [H, W, 3]; returns [H, W, 3] or [W, H, 3]."""
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
