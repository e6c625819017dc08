"""CIFAR from the official binary archives: the images and the order of TFDS, without TensorFlow."""

import dataclasses
import hashlib
import logging
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from images import write_tfds

from atkd_jax import data, doctor
from atkd_jax.data import cifar_binary, prepare, tfds
from atkd_jax.data.info import KNOWN
from atkd_jax.data.tf import import_tf
from atkd_jax.errors import UserError
from configs import cifar10 as config_file

ROWS = 3  # of each of the small files


def write_cifar(path, name, monkeypatch):
    """A folder in the official layout with small files, which from then on are the official ones.

    Returns:
      the folder, and the rows of each split: labels and pixels as the files have them.
    """
    layout, draw = cifar_binary.LAYOUTS[name], np.random.RandomState(7)
    folder = path / layout.folder
    folder.mkdir(parents=True)
    rows, files = {}, {}
    for split in ("train", "test"):
        files[split] = getattr(layout, split)
        num = ROWS * len(files[split])
        rows[split] = draw.randint(0, 256, (num, layout.label_bytes + 3072), np.uint8)
        rows[split][:, : layout.label_bytes] = draw.randint(0, 10, (num, layout.label_bytes))
        parts = np.split(rows[split], len(files[split]))
        for part, file in zip(parts, files[split], strict=True):
            part.tofile(folder / file.name)
        files[split] = tuple(
            dataclasses.replace(file, rows=ROWS, md5=hashlib.md5(part.tobytes()).hexdigest())
            for part, file in zip(parts, files[split], strict=True)
        )
    (folder / "readme.html").write_text("not asked for")
    monkeypatch.setitem(cifar_binary.LAYOUTS, name, dataclasses.replace(layout, **files))
    small = dataclasses.replace(
        KNOWN[name], num_train=len(rows["train"]), num_test=len(rows["test"])
    )
    monkeypatch.setitem(KNOWN, name, small)
    return folder, rows


def pack(folder, names=None, prefix="", mode="w:gz"):
    """The archive of a folder, beside it."""
    path = (
        folder.parent
        / {layout.folder: layout.archive for layout in cifar_binary.LAYOUTS.values()}[folder.name]
    )
    with tarfile.open(path, mode) as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            if names is None or file.name in names:
                archive.add(file, f"{prefix}{folder.name}/{file.name}")
    return path


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


@pytest.fixture
def official(tmp_path, monkeypatch, name):
    return write_cifar(tmp_path, name, monkeypatch)


def expected(rows, split):
    """Image and label, one by one: the format's description on the page of the data set."""
    order = cifar_binary.tfds_order(split, len(rows))
    image = np.empty((len(rows), 32, 32, 3), np.uint8)
    for i, row in enumerate(rows[order]):
        for channel in range(3):
            plane = row[len(row) - 3072 :][1024 * channel : 1024 * (channel + 1)]
            image[i, :, :, channel] = plane.reshape(32, 32)
    return image, rows[order][:, -3073]


@pytest.mark.parametrize("packed", [False, True])
def test_folder_and_archive_give_the_same_images(official, name, packed, no_tensorflow):
    folder, rows = official
    if packed:
        pack(folder)
        folder.rename(folder.with_name("elsewhere"))
    source = data.load(name, data_dir=str(folder.parent))
    for split in ("train", "test"):
        image, label = expected(rows[split], split)
        found = getattr(source, split)
        np.testing.assert_array_equal(found.image, image)
        np.testing.assert_array_equal(found.label, label)
        assert found.image.flags.c_contiguous and found.label.dtype == np.int32
    known = vars(KNOWN[name])
    assert {key: value for key, value in vars(source.info).items() if key != "train_label"} == {
        key: value for key, value in known.items() if key != "train_label"
    }
    np.testing.assert_array_equal(source.info.train_label, source.train.label)


def test_archives_are_read_however_they_were_packed(official, name):
    folder, rows = official
    for prefix, mode in (("", "w:gz"), ("./", "w:gz"), ("", "w"), ("", "w:xz")):
        path = pack(folder, prefix=prefix, mode=mode)
        train, _ = cifar_binary.read(name, path)
        np.testing.assert_array_equal(train.image, expected(rows["train"], "train")[0])


def test_the_order_is_the_one_that_tfds_has():
    """The first images of CIFAR-10 in TFDS are published with their names: train_16399, ..."""
    train = cifar_binary.tfds_order("train", 50_000)
    np.testing.assert_array_equal(train[:5], [16399, 1680, 47917, 17307, 27051])
    np.testing.assert_array_equal(np.sort(train), np.arange(50_000))


@pytest.mark.parametrize(("split", "num"), [("train", 500), ("test", 300)])
def test_the_order_is_that_of_the_shuffler_of_tfds(tmp_path, split, num):
    import_tf()
    from tensorflow_datasets.core import shuffle

    shuffler = shuffle.Shuffler(tmp_path, hash_salt=split)
    for i in range(num):
        shuffler.add(i, str(i).encode())
    order = [int(value) for _, value in shuffler]
    np.testing.assert_array_equal(cifar_binary.tfds_order(split, num), order)


def test_tfds_prepares_the_same_set_from_the_same_archive(tmp_path, monkeypatch, name):
    """The real builder of TFDS, from a small archive whose checksum it is told."""
    folder, rows = write_cifar(tmp_path / "bin", name, monkeypatch)
    lists = {"batches.meta.txt": 10, "fine_label_names.txt": 100, "coarse_label_names.txt": 20}
    for file, count in lists.items():
        (folder / file).write_text("".join(f"{i}\n" for i in range(count)))
    archive = pack(folder)
    _, tfds = import_tf()
    from tensorflow_datasets.core.download import checksums

    content = archive.read_bytes()
    (url,) = tfds.builder_cls(name).url_infos
    facts = checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), archive.name)
    monkeypatch.setitem(tfds.builder_cls(name).url_infos, url, facts)
    prepare.main([name, f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={archive.parent}"])
    ours = data.load(name, data_dir=str(archive.parent))
    theirs = data.load(name, data_dir=str(tmp_path / "tfds"))
    assert data.Cifar(name).binary_files(str(tmp_path / "tfds")) is None
    for split in ("train", "test"):
        for array in ("image", "label"):
            a, b = (getattr(getattr(source, split), array) for source in (ours, theirs))
            np.testing.assert_array_equal(a, b)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def one_line(official, name, damage, message):
    folder, _ = official
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(name, data_dir=str(folder.parent))
    text = str(caught.value)
    assert "\n" not in text and f"into {folder.parent}, packed or unpacked" in text
    assert cifar_binary.PAGE in text and "elete" not in text and isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: flip(file, 0), "has MD5 .* instead of"),  # a label
        (lambda file: flip(file, -1), "has MD5 .* instead of"),  # a pixel
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "bytes instead of"),
        (lambda file: file.write_bytes(b""), "has 0 bytes instead of"),
        (lambda file: file.unlink(), "it has no "),
        (lambda file: (file.unlink(), file.mkdir()), "cannot be read .Is a directory"),
    ],
)
def test_a_damaged_file_is_named(official, name, damage, message):
    for file in cifar_binary.LAYOUTS[name].train[:1]:
        one_line(official, name, lambda folder, n=file.name: damage(folder / n), message)


def emptied(folder):
    folder.rename(folder.with_name("elsewhere"))


def cut_archive(folder):
    path = pack(folder)
    path.write_bytes(path.read_bytes()[:-500])
    emptied(folder)


def half_archive(folder):
    pack(folder, ["readme.html"])
    emptied(folder)


def page_instead(folder):
    pack(folder).write_text("<html>404</html>")
    emptied(folder)


def link_inside(folder):
    path = pack(folder, ["readme.html"])
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"{folder.name}/{next(folder.glob('*.bin')).name}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    emptied(folder)


def flipped_archive(folder):
    flip(pack(folder), 3000)
    emptied(folder)


@pytest.mark.parametrize(
    "damage", [cut_archive, half_archive, page_instead, link_inside, flipped_archive]
)
def test_a_damaged_archive_is_named(official, name, damage):
    one_line(official, name, damage, r"tar.gz is not whole: (it cannot be read|it has no|.* MD5)")


def test_no_damage_of_an_archive_gives_other_images(tmp_path, monkeypatch):
    """One byte changed anywhere: one line, or the right images."""
    folder, rows = write_cifar(tmp_path, "cifar100", monkeypatch)
    right = expected(rows["train"], "train")[0]
    path = pack(folder)
    content, seed = path.read_bytes(), 20240607
    draw = np.random.RandomState(seed)
    for at in np.concatenate([np.arange(64), draw.randint(0, len(content), 100)]):
        damaged = bytearray(content)
        damaged[at] ^= draw.randint(1, 256)
        path.write_bytes(damaged)
        try:
            train, _ = cifar_binary.read("cifar100", path)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error), (seed, at)
        else:
            np.testing.assert_array_equal(train.image, right, err_msg=f"{seed}, {at}")


def test_a_folder_that_is_not_whole_yields_to_the_archive(official, name):
    folder, _ = official
    assert cifar_binary.find(name, folder.parent) == folder
    archive = pack(folder)
    assert cifar_binary.find(name, folder.parent) == folder
    (folder / cifar_binary.LAYOUTS[name].test[0].name).unlink()
    assert cifar_binary.find(name, folder.parent) == archive
    assert len(data.load(name, data_dir=str(folder.parent)).test.label) == ROWS


def test_restored_images_are_told_of(tmp_path, monkeypatch, caplog):
    folder, _ = write_cifar(tmp_path, "cifar10", monkeypatch)
    with caplog.at_level(logging.WARNING):
        cifar_binary.read("cifar10", folder)
    assert not caplog.records
    layout = cifar_binary.LAYOUTS["cifar10"]
    copy = dataclasses.replace(layout.test[0], md5="0" * 32, restored=layout.test[0].md5)
    other = dataclasses.replace(layout, test=(copy,))
    monkeypatch.setitem(cifar_binary.LAYOUTS, "cifar10", other)
    with caplog.at_level(logging.WARNING):
        cifar_binary.read("cifar10", folder)
    assert "restored from JPEG" in caplog.text


def test_facts_of_the_official_files():
    """Sizes: the page of the data set. An archive that is not gzip is no archive of these."""
    cifar10, cifar100 = cifar_binary.LAYOUTS["cifar10"], cifar_binary.LAYOUTS["cifar100"]
    assert {cifar10.size(file) for file in cifar10.train + cifar10.test} == {30_730_000}
    assert [cifar100.size(f) for f in cifar100.train + cifar100.test] == [153_700_000, 30_740_000]
    for name, layout in cifar_binary.LAYOUTS.items():
        assert sum(file.rows for file in layout.train) == KNOWN[name].num_train
        assert sum(file.rows for file in layout.test) == KNOWN[name].num_test


def test_the_first_place_is_a_prepared_set(tmp_path, monkeypatch):
    folder, _ = write_cifar(tmp_path, "cifar10", monkeypatch)
    assert data.Cifar("cifar10").binary_files(str(tmp_path)) == folder
    (tmp_path / "cifar10").mkdir()  # not prepared
    assert data.Cifar("cifar10").binary_files(str(tmp_path)) == folder
    white = [(np.full((32, 32, 3), 255, np.uint8), i % 10) for i in range(15)]
    splits = {"train": white, "test": white[:3]}
    write_tfds(tmp_path, "cifar10", "3.0.2", splits, 10, (32, 32, 3))
    assert data.Cifar("cifar10").binary_files(str(tmp_path)) is None
    assert data.load("cifar10", data_dir=str(tmp_path)).train.image.min() == 255
    # Where it cannot be read, for lack of TensorFlow, the files are.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    import_tf.cache_clear()
    try:
        assert data.Cifar("cifar10").binary_files(str(tmp_path)) == folder
    finally:
        import_tf.cache_clear()


def test_without_any_source_both_ways_are_named(tmp_path, name, no_tensorflow):
    layout = cifar_binary.LAYOUTS[name]
    for ask in (
        lambda: data.load(name, data_dir=str(tmp_path)),
        lambda: tfds.on_disk(name, str(tmp_path)),
    ):
        with pytest.raises(ValueError, match="pip install tensorflow-cpu") as caught:
            ask()
        text = str(caught.value)
        assert f"put {layout.archive}" in text and f"into {tmp_path}" in text
        assert cifar_binary.PAGE in text and layout.archive_md5 in text and "\n" not in text
    with pytest.raises(SystemExit, match="put cifar-10.*-binary.tar.gz|put cifar-100-binary"):
        prepare.main([name, "--data_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="pip install") as caught:
        data.load("svhn", data_dir=str(tmp_path))
    assert "binary" not in str(caught.value)


def test_the_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cifar_binary.find("cifar10") == tmp_path / "cifar-10-batches-bin"
    assert data.Cifar("cifar10").present() and not data.Cifar("cifar100").present()
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cifar_binary.folder_of("") == tmp_path / "tensorflow_datasets"
    assert cifar_binary.find("digits") is None


def test_prepare_says_that_the_files_are_enough(official, name, capsys, no_tensorflow):
    folder, rows = official
    prepare.main([name, "--data_dir", str(folder.parent)])
    said = capsys.readouterr().out
    assert f"{folder} is whole" in said and f"train {len(rows['train'])}" in said
    flip(next(folder.glob("*.bin")), 9)
    with pytest.raises(SystemExit, match="error: .* is not whole"):
        prepare.main([name, "--data_dir", str(folder.parent)])


def test_the_doctor_looks_at_the_files(official, name, no_tensorflow):
    folder, _ = official
    config = config_file.get_config("method=none")
    config.data.name, config.data.data_dir = name, str(folder.parent)
    assert f"{name} in {folder}" in doctor.data_set(config)
    file = folder / cifar_binary.LAYOUTS[name].train[0].name
    flip(file, 5)  # the content is compared when it is read
    doctor.data_set(config)
    file.write_bytes(b"short")
    with pytest.raises(ValueError, match=f"{file.name} has 5 bytes instead of"):
        doctor.data_set(config)


@pytest.mark.slow
def test_a_process_that_reads_the_files_imports_no_tensorflow(tmp_path):
    """In a process of its own, where nothing else has imported it."""
    code = (
        "import sys, hashlib, dataclasses\n"
        "from atkd_jax import data\n"
        "from atkd_jax.data import cifar_binary as c\n"
        f"root = {str(tmp_path)!r}\n"
        "files = {}\n"
        "import os\n"
        "os.mkdir(root + '/cifar-100-binary')\n"
        "for split in ('train', 'test'):\n"
        "    content = bytes(3074)\n"
        "    open(f'{root}/cifar-100-binary/{split}.bin', 'wb').write(content)\n"
        "    md5 = hashlib.md5(content).hexdigest()\n"
        "    files[split] = (c.File(split + '.bin', 1, md5),)\n"
        "c.LAYOUTS['cifar100'] = dataclasses.replace(c.LAYOUTS['cifar100'], **files)\n"
        "assert data.load('cifar100', data_dir=root).train.image.shape == (1, 32, 32, 3)\n"
        "assert not any(name.startswith('tensorflow') for name in sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
