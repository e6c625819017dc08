"""Downloads and prepares a data set: python -m atkd_jax.data.prepare cifar10 [--data_dir DIR].

Without a network, bring the archives under their upstream names (for CIFAR-10
cifar-10-binary.tar.gz) and name their folder: --manual_dir DIR. Nothing is downloaded twice.
Without TensorFlow, CIFAR's archive in data_dir is all that is needed; it is then checked.
"""

from __future__ import annotations

from atkd_jax.command_line import Parser, entry_point
from atkd_jax.data import DATASETS, Tfds, TfdsDataset, create

INTERRUPTED = "stopped; the same command prepares the set anew, with what it has downloaded"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("name", help="cifar10, or another name of config.data.name")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", help="folder with archives that were brought by hand")
    args = parser.parse_args(argv)
    with entry_point(INTERRUPTED):
        print(find(args.name).prepare(args.data_dir, args.manual_dir))


def find(name: str) -> TfdsDataset:
    """The data set of a name in the configuration, or in TFDS."""
    if name in DATASETS:
        dataset = create(name)
        if isinstance(dataset, TfdsDataset):
            return dataset
    return Tfds(name.removeprefix("tfds:"))


if __name__ == "__main__":
    main()
