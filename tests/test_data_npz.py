"""Anyone's npz: read as written, or one clear sentence that names the array."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from atkd_jax import data
from atkd_jax.data import npz
from atkd_jax.errors import UserError


def arrays(**changed):
    draw = np.random.RandomState(0)
    good = {
        "x_train": draw.randint(0, 256, (6, 5, 4, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": draw.randint(0, 256, (2, 5, 4, 3), np.uint8),
        "y_test": np.array([2, 0]),
    }
    return {k: v for k, v in (good | changed).items() if v is not None}


def test_npz_is_read_as_written(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    source = data.load(f"npz:{path}")
    np.testing.assert_array_equal(source.train.image, arrays()["x_train"])
    np.testing.assert_array_equal(source.test.label, [2, 0])
    assert source.test.label.dtype == np.int32
    assert source.info.class_names == ("0", "1", "2") and source.info.image_shape == (5, 4, 3)
    assert (source.info.num_train, source.info.num_test) == (6, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "has no array y_test"),
        ({"x_train": np.zeros((6, 5, 4, 3), np.float32)}, "x_train is float32, it must be uint8"),
        ({"x_train": np.zeros((6, 3, 5, 4), np.uint8)}, r"x_train has shape \(6, 3, 5, 4\)"),
        ({"x_test": np.zeros((2, 5, 4), np.uint8)}, r"x_test has shape \(2, 5, 4\)"),
        ({"x_test": np.zeros((2, 4, 4, 3), np.uint8)}, r"of x_test \(4, 4, 3\)"),
        ({"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test is em"),
        ({"y_train": np.arange(6.0)}, "y_train is float64, it must hold integers"),
        ({"y_train": np.zeros((6, 1), int)}, r"y_train has shape \(6, 1\)"),
        ({"y_train": np.array([0, 1, 2])}, r"y_train has shape \(3,\), it must be \(6,\)"),
        ({"y_train": np.array([-1, 1, 2, 0, 1, 2])}, "y_train has label -1"),
        ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, "no example of class 0"),
        ({"y_train": np.array([0, 1, 3, 0, 1, 3])}, "reaches 3 but has no example of class 2"),
        ({"y_train": np.array([0, 1, 2, 3, 4, 10**8])}, "reaches 100000000 .* class 5"),
        ({"y_train": np.array([0, 1, 2**64 - 1] * 2, np.uint64)}, "has no example of class 2"),
        ({"y_test": np.array([-1, 0])}, "y_test has label -1"),
        ({"y_test": np.array([3, 0])}, "y_test has label 3, the classes of y_train are 0..2"),
        (
            {"y_train": np.array(["a"] * 6, dtype=object)},
            "y_train, it holds Python objects",
        ),
    ],
)
def test_npz_says_what_is_wrong(tmp_path, changed, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**changed))
    with pytest.raises(ValueError, match=message):
        data.load(f"npz:{path}")


def test_npz_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        data.load(f"npz:{tmp_path}/absent.npz")
    for content in (b"", b"not an archive", b"PK\x03\x04 cut off"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as .npz"):
            data.load(f"npz:{tmp_path}/bad.npz")


def test_a_folder_is_no_archive(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as .npz: Is a directory"):
        data.load(f"npz:{tmp_path}")


def npy(array=None, *, version=(1, 0), header=None):
    """The bytes of an .npy file, whose header may be any text."""
    file = io.BytesIO()
    if header is None:
        np.lib.format.write_array(file, array, version)
        return file.getvalue()
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return np.lib.format.magic(*version) + length + header.encode("latin1")


def write(path, compression=zipfile.ZIP_DEFLATED, **members):
    """An archive whose members are given as bytes, the others are right."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, array in arrays().items():
            file.writestr(f"{name}.npy", members.get(name) or npy(array))
    return path


def huge(shape, dtype="|u1"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"
    return npy(header=header) + bytes(1000)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (huge("(10000000, 5, 4, 3)"), "takes 600,000,000 bytes, the archive has 1,000"),
        (huge("(1" + "0" * 40 + ", 5, 4, 3)"), "takes 6.* bytes, the archive has 1,000"),
        (huge("(-1000, -1, 1, 1)"), "its shape"),
        (huge("(0, 5, 4, 3)"), "takes 0 bytes, the archive has 1,000"),
        (huge("(5.0, 4)"), "shape is not valid"),
        (huge("(1000,)", "O"), "Python objects"),
        (huge("(6, 5, 4, 3)", "no such type"), "x_train, descr is not a valid"),
        (npy(header="not a dictionary"), "x_train, "),
        (npy(header="{" * 5000), "x_train, "),
        (npy(header="(" * 9000 + ")" * 900), "x_train, "),
        (npy(header="{'descr': '|u1'}"), "x_train, Header does not contain"),
        (npy(header=" " * 60000), "x_train, "),
        (npy(version=(2, 0), header="x" * 10**6), "x_train, "),
        (b"\x93NUMPY\x09\x00" + bytes(20), "x_train, "),
        (b"\x93NUMPY", "x_train, "),
        (b"", "x_train, "),
        (b"GIF89a and so on", "x_train, the magic string is not correct"),
        (npy(np.zeros((6, 5, 4, 3), np.uint8))[:-1], "takes 360 bytes, the archive has 359"),
        (npy(np.zeros((6, 5, 4, 3), np.uint8)) + b"!", "takes 360 bytes, the archive has 361"),
    ],
)
def test_a_header_that_lies_is_named(tmp_path, member, message):
    path = write(tmp_path / "mine.npz", x_train=member or b"\0")
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        data.load(f"npz:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))
    assert peak < 20 * 2**20


@pytest.mark.parametrize("num", [10**8, 10**13])
def test_an_archive_whose_index_lies_too_is_named(tmp_path, num):
    """Header and index agree on more than the file holds, or than any machine has memory."""
    sizes = {"x_train": num * 60, "y_train": num}
    shapes = {"x_train": (num, 5, 4, 3), "y_train": (num,)}
    with zipfile.ZipFile(tmp_path / "mine.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays().items():
            content = huge(str(shapes[name])) if name in shapes else npy(array)
            file.writestr(f"{name}.npy", content)
            if name in sizes:
                file.getinfo(f"{name}.npy").file_size += sizes[name] - 1000
    with pytest.raises(ValueError, match="cannot be read as .npz: x_train, ") as caught:
        npz.read(str(tmp_path / "mine.npz"))
    assert isinstance(caught.value, UserError) and "takes" not in str(caught.value)


def test_a_label_beyond_all_examples_costs_nothing(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(y_train=np.array([0, 1, 2, 3, 4, 10**18])))
    tracemalloc.start()
    with pytest.raises(ValueError, match="reaches 1000000000000000000 but has no example of cla"):
        data.load(f"npz:{path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_arrays_are_read_in_every_way_that_numpy_writes_them(tmp_path):
    members = {
        "x_train": npy(np.asfortranarray(arrays()["x_train"])),
        "y_train": npy(arrays()["y_train"].astype(">u2"), version=(2, 0)),
        "y_test": npy(arrays()["y_test"].astype(np.int8)),
    }
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        same(npz.read(str(write(tmp_path / "mine.npz", compression, **members))))


def same(source, told=""):
    """Whether these are the arrays that were written."""
    for split in ("train", "test"):
        found = getattr(source, split)
        np.testing.assert_array_equal(found.image, arrays()[f"x_{split}"], err_msg=told)
        np.testing.assert_array_equal(found.label, arrays()[f"y_{split}"], err_msg=told)


def damages(content, draw):
    """Every byte changed once; cut in many places; pieces lost, doubled and zeroed."""
    for at in range(len(content)):
        yield content[:at] + bytes([content[at] ^ draw.randint(1, 256)]) + content[at + 1 :]
        if at % 16 == 0:
            yield content[:at]
    for _ in range(100):
        first, last = sorted(draw.randint(0, len(content), 2))
        yield content[:first] + content[last:]
        yield content[:last] + content[first:]
        yield content[:first] + bytes(last - first) + content[last:]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_damage_is_one_line_or_none(tmp_path, save):
    """Thousands of damaged files: none gives other arrays, another exception or a second line."""
    seed = 20240608
    path, draw = tmp_path / "mine.npz", np.random.RandomState(seed)
    save(path, **arrays())
    content, read, refused = path.read_bytes(), 0, 0
    for number, damaged in enumerate(damages(content, draw)):
        told = f"damage {number} of seed {seed}"
        path.write_bytes(damaged)
        try:
            source = npz.read(str(path))
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), told
            assert isinstance(error, UserError), told
            refused += 1
        except Exception as error:
            raise AssertionError(told) from error
        else:
            same(source, told)
            read += 1
    assert refused > 1000 and read > 50, (read, refused)  # dates and the like are no damage
