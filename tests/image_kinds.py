"""Every kind of image file that people have, each with the pixels that it shows."""

import struct
import zlib

import numpy as np
from images import encoded, picture
from PIL import Image

ORIENTATION = 0x0112


def turned(image, orientation):
    """What is stored of an upright image that has this orientation; the words of EXIF 2.32."""
    where = {  # first row, first column of what is stored
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }  # fmt: skip
    row, column = where[orientation]
    if row in ("left", "right"):
        image = image.swapaxes(0, 1)
    if row in ("bottom", "right"):
        image = image[::-1]
    if column in ("bottom", "right"):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def with_orientation(image, orientation, format="JPEG", **options):
    """An image file that shows `image` upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(turned(image, orientation), format, exif=exif, **options)


def png16(image):
    """A PNG of 16 bits a channel, which Pillow cannot write: [H, W, 3] or [H, W, 4] uint16."""
    height, width, channels = image.shape

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def kinds(size, number=0):
    """name of a file -> (its bytes, the [H, W, 3] uint8 that it shows, to within its losses).

    Args:
      size: (W, H) of the upright images.
    """
    rgb = picture(number, size)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    as_rgb = np.repeat(grey[..., None], 3, 2)
    noise = np.random.RandomState(number).randint(0, 256, grey.shape).astype(np.uint8)
    deep = grey.astype(np.uint16) * 256 + noise
    palette = Image.fromarray(rgb).quantize(64)
    shown = np.asarray(palette.convert("RGB"))
    few = Image.fromarray(grey).convert("1")
    files = {
        "plain.jpg": (encoded(rgb, quality=95), rgb),
        "plain.png": (encoded(rgb, "PNG"), rgb),
        "grey.jpg": (encoded(grey, quality=95), as_rgb),
        "grey.png": (encoded(grey, "PNG"), as_rgb),
        "cmyk.jpg": (encoded(Image.fromarray(rgb).convert("CMYK"), quality=95), rgb),
        "palette.png": (encoded(palette, "PNG"), shown),
        "palette_and_transparent.png": (encoded(palette, "PNG", transparency=3), shown),
        "palette_and_alphas.png": (encoded(palette, "PNG", transparency=bytes(range(64))), shown),
        "grey_and_transparent.png": (encoded(grey, "PNG", transparency=7), as_rgb),
        "alpha.png": (encoded(np.dstack([rgb, noise]), "PNG"), rgb),
        "grey_and_alpha.png": (encoded(np.dstack([grey, noise]), "PNG"), as_rgb),
        "1bit.png": (encoded(few, "PNG"), np.asarray(few.convert("RGB"))),
        "16bit.png": (encoded(Image.fromarray(deep), "PNG"), as_rgb),
        "16bit_rgb.png": (png16(rgb.astype(np.uint16) * 256 + noise[..., None]), rgb),
        "16bit_alpha.png": (
            png16(np.dstack([rgb, noise]).astype(np.uint16) * 256 + noise[..., None]), rgb
        ),
    }  # fmt: skip
    for turn in range(1, 9):
        files[f"exif{turn}.jpg"] = (with_orientation(rgb, turn, quality=95), rgb)
        files[f"exif{turn}.png"] = (with_orientation(rgb, turn, "PNG"), rgb)
    files["exif6_16bit.png"] = (with_orientation(deep, 6, "PNG"), as_rgb)
    files["exif6_grey.jpg"] = (with_orientation(grey, 6, quality=95), as_rgb)
    return files
