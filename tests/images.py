"""Small image files and prepared data sets for the tests of data."""

import io
import os
import tarfile

import numpy as np
from PIL import Image

from atkd_jax.data.info import CIFAR10_CLASSES


def picture(number, size=(40, 30)):
    """A smooth image unlike those of other numbers: [H, W, 3] uint8 for size = (W, H)."""
    coarse = np.random.RandomState(number).randint(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def encoded(image, format="JPEG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, format, **options)
    return file.getvalue()


def write_folder(root, train=24, test=10, classes=("ant", "bee", "cat"), size=(40, 30)):
    """A folder of JPEGs whose numbers run through the classes; returns root as a string."""
    for split, count, first in (("train", train, 0), ("val", test, 1000)):
        for i in range(count):
            path = root / split / classes[i % len(classes)] / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Sizes differ a little unless one is asked for.
            shape = size or (40 + i % 7, 30 + i % 5)
            path.write_bytes(encoded(picture(first + i, shape)))
    return os.fspath(root)


def write_tfds(data_dir, name, version, splits, num_classes, shape=(None, None, 3), shards=1):
    """A prepared TFDS data set.

    Args:
      splits: name -> list of (image: array or bytes, label).
    """
    from atkd_jax.data.tf import import_tf

    _, tfds = import_tf()
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=num_classes),
        }
    )
    examples = {
        split: [
            (f"{split}_{i:04d}", {"id": f"{split}_{i:04d}", "image": image, "label": label})
            for i, (image, label) in enumerate(rows)
        ]
        for split, rows in splits.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        data_dir=os.fspath(data_dir),
        features=features,
        split_datasets=examples,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )


def write_cinic(path):
    """An archive of the official layout: 2 train, 1 valid and 1 test image per class, one grey."""
    number = 0
    with tarfile.open(path, "w:gz") as tar:
        for folder, count in (("train", 2), ("valid", 1), ("test", 1)):
            for name in CIFAR10_CLASSES:
                for i in range(count):
                    image = picture(number, (32, 32))
                    content = encoded(image[..., 0] if number == 0 else image, "PNG")
                    entry = tarfile.TarInfo(f"./{folder}/{name}/n{number:05d}_{i}.png")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                    number += 1
        readme = tarfile.TarInfo("./README.md")
        tar.addfile(readme, io.BytesIO(b""))
