"""What a data set is: a value with options that provides its facts, its files and its images."""

from __future__ import annotations

import abc
import dataclasses

from atkd_jax.data.info import IMAGENET_MEAN, IMAGENET_STD
from atkd_jax.data.memory import MemorySource
from atkd_jax.data.records import Share
from atkd_jax.data.stream import Source
from atkd_jax.errors import UserError
from atkd_jax.ranges import ZERO, check_fields, number, setting, whole
from atkd_jax.types import DataInfo

PIXELS = whole(8, 4096)
CROP = 224 / 256  # the usual "resize to 256, crop 224"
CROP_RATIO = number("(0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(abc.ABC):
    """A data set. Fields with a default are its options, see `OPTIONS`.

    `data_dir`, in all methods, is the folder where TFDS keeps prepared data sets and where the
    archives of CIFAR are; None means $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Attributes:
      image_size: height and width; 0 for the images' own. Images that stay in memory are never
        resized: any size but their own is an error.
      in_memory: whether `load` returns a MemorySource, or else a StreamSource.
      file_bytes: mean size of an encoded training image where that is published, else 0.
    """

    image_size: int = setting(0, ZERO | PIXELS)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def file_bytes(self) -> int:
        return 0

    @abc.abstractmethod
    def info(self, data_dir: str | None = None) -> DataInfo:
        """The facts, as `load` returns them, but for `train_label`. Downloads nothing.

        Published facts are returned without opening a file. Otherwise this reads what opening the
        data set reads: file names or metadata of a stream, the images of a set in memory.

        Raises:
          UserError: the files are missing or wrong, or the images have another size.
        """

    @abc.abstractmethod
    def check(self, data_dir: str | None = None) -> str:
        """Checks that all files are there. Decodes no image and downloads nothing.

        Returns:
          A line that describes the files found.

        Raises:
          UserError: what is missing or wrong on this machine, and what to do.
        """

    @abc.abstractmethod
    def present(self, data_dir: str | None = None) -> bool:
        """Whether there are any files on this machine; a quick look that opens none of them."""

    @abc.abstractmethod
    def load(self, data_dir: str | None = None, share: Share | None = None) -> Source:
        """Reads (in memory) or opens (streamed) the data set. May download it.

        Args:
          share: this host's share; needed by streamed data sets only.

        Raises:
          UserError: the files are missing or wrong, or the images have another size.
        """

    def _check_size(self, name: str, image_shape: tuple[int, ...]) -> None:
        """Raises UserError if `image_size` is not the size of images that are never resized."""
        height, width = image_shape[:2]
        if self.image_size and (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"the images of {name} are {width}x{height} and stay so: leave"
                f" image_size={self.image_size} out"
            )

    def _sized(self, source: MemorySource) -> MemorySource:
        self._check_size(source.info.name, source.info.image_shape)
        return source


def photographs(
    name: str, size: int, class_names: tuple[str, ...], num_train: int, num_test: int
) -> DataInfo:
    """The facts of streamed photographs, which are normalised as ImageNet."""
    return DataInfo(
        name=name,
        image_shape=(size, size, 3),
        class_names=class_names,
        num_train=num_train,
        num_test=num_test,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def needed(share: Share | None) -> Share:
    if share is None:
        raise UserError("a streamed data set needs share=Share(batch_size, seed, ...)")
    return share
