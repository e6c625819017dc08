"""Data sets by name, and what reads them. `datasets` lists the names and their options.

source = data.load("cifar10")                                  # arrays in memory
source = data.load("folder:photos", image_size=224, share=data.Share(64))  # a stream
data.create("svhn", extra=True).info().num_train               # facts, without the images
"""

from atkd_jax.data.dataset import Dataset
from atkd_jax.data.datasets import DATASETS, OPTIONS, create, load
from atkd_jax.data.local import Digits, Folder, Npz
from atkd_jax.data.memory import Arrays, MemorySource, epoch_order, eval_order
from atkd_jax.data.records import Records, Share
from atkd_jax.data.stream import Source, StreamSource
from atkd_jax.data.tfds_datasets import Cifar, Cinic10, ImageNet, Svhn, Tfds, TfdsDataset

__all__ = [
    "DATASETS", "OPTIONS", "Arrays", "Cifar", "Cinic10", "Dataset", "Digits", "Folder", "ImageNet",
    "MemorySource", "Npz", "Records", "Share", "Source", "StreamSource", "Svhn", "Tfds",
    "TfdsDataset", "create", "epoch_order", "eval_order", "load",
]  # fmt: skip
