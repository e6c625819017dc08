"""One rule for image files: whatever is stored, the pixels that a person sees."""

import importlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from image_kinds import kinds, with_orientation
from images import encoded, picture
from PIL import Image, PngImagePlugin

from atkd_jax.data import image_file

# What the module keeps quiet, pytest would tell.
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")


@pytest.mark.parametrize("size", [(40, 30), (30, 40)])
def test_every_kind_of_file_shows_what_was_put_in(size):
    for name, (content, image) in kinds(size).items():
        ours = image_file.decode(content)
        assert ours.dtype == np.uint8 and ours.flags.c_contiguous, name
        if name.endswith(".png"):
            np.testing.assert_array_equal(ours, image, name)
        else:
            assert np.abs(ours.astype(int) - image).mean() < 4, name
        assert image_file.size(content) == image.shape[:2], name


def test_a_path_is_read_as_its_bytes_are(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(with_orientation(picture(0), 6))
    np.testing.assert_array_equal(
        image_file.decode(str(path)), image_file.decode(path.read_bytes())
    )


def damaged_metadata():
    whole = with_orientation(picture(0), 1)
    place = whole.index(b"Exif\0\0") + 6
    for damage in (b"", b"XX*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
        yield whole[:place] + damage + whole[place + len(damage) :]


def test_damaged_metadata_are_none():
    image = picture(0)
    plain = image_file.decode(encoded(image))
    for content in damaged_metadata():
        np.testing.assert_array_equal(image_file.decode(content), plain)
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        np.testing.assert_array_equal(image_file.decode(encoded(image, exif=exif)), plain)


def test_nothing_is_warned_of_for_every_image():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        importlib.reload(image_file)  # as at its first import, which pytest has undone
        for content, _ in kinds((40, 30)).values():
            image_file.decode(content)
        for content in damaged_metadata():
            image_file.decode(content)
    assert not seen


def test_what_is_no_image_is_one_line(tmp_path):
    content = encoded(picture(0), "PNG")
    header = content[:33]  # signature and size, and nothing after
    for bad in (b"", b"no image", content[:-30], header, encoded(picture(0))[:300]):
        with pytest.raises(ValueError, match=r"\w+") as caught:
            image_file.decode(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="No such file"):
        image_file.size(str(tmp_path / "none.png"))


def test_a_photograph_of_200_megapixels_is_no_bomb():
    def png(width, height):  # its header, which says all of its size
        data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = struct.pack(">I", 13), data, struct.pack(">I", zlib.crc32(data))
        end = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + end

    assert image_file.size(png(16384, 12288)) == (12288, 16384)
    with pytest.raises(ValueError, match="60000x60000 pixels are more than 536,870,912"):
        image_file.size(png(60000, 60000))
    with pytest.raises(ValueError, match="pixels are more than"):
        image_file.decode(png(60000, 60000))


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path, monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    path = tmp_path / "image.png"
    path.write_bytes(encoded(picture(0), "PNG"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    assert image_file.size(str(path)) == (30, 40)
