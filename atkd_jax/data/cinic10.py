"""A CINIC-10 builder for TensorFlow Datasets, which lacks one. Importing registers `cinic10`.

Darlow et al. 2018, arXiv 1810.03505. The builder reads the official archive from the manual
directory; its splits are train, validation and test, 90,000 images each.
"""

from __future__ import annotations

from atkd_jax.data.info import CIFAR10_CLASSES
from atkd_jax.data.tf import import_tf

_, tfds = import_tf()
ARCHIVE = "CINIC-10.tar.gz"
FOLDERS = {"train": "train", "validation": "valid", "test": "test"}  # split -> folder


class Cinic10(tfds.core.GeneratorBasedBuilder):  # type: ignore[name-defined]
    """CINIC-10, 32x32 RGB."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"put https://datashare.is.ed.ac.uk/bitstream/handle/10283/3192/{ARCHIVE} into manual_dir"
    )

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="CINIC-10 is not ImageNet or CIFAR-10 (arXiv 1810.03505).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CIFAR10_CLASSES)),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/BayesWatch/cinic-10",
        )

    def _split_generators(self, dl_manager):
        archive = dl_manager.manual_dir / ARCHIVE
        if not archive.exists():
            raise FileNotFoundError(
                f"{archive} does not exist: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        return {
            split: self._generate_examples(dl_manager.iter_archive(archive), folder)
            for split, folder in FOLDERS.items()
        }

    def _generate_examples(self, archive, folder: str):
        for path, file in archive:
            parts = str(path).removeprefix("./").split("/")
            if len(parts) >= 3 and parts[-3] == folder and parts[-1].endswith(".png"):
                name = "/".join(parts[-2:])
                yield name, {"image": file, "label": parts[-2], "file_name": parts[-1]}
