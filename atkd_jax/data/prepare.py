"""Downloads and prepares a data set: python -m atkd_jax.data.prepare cifar10 [--data_dir DIR].

Without a network, bring the archives under their upstream names (for CIFAR-10
cifar-10-binary.tar.gz) and name their folder: --manual_dir DIR. Nothing is downloaded twice.
Without TensorFlow, CIFAR's archive in data_dir is all that is needed; it is then checked.
"""

from __future__ import annotations

from atkd_jax.command_line import Parser, entry_point
from atkd_jax.data import binary_files, cifar_binary, tfds_name
from atkd_jax.data.prepared import download, find_builder

INTERRUPTED = "stopped; the same command prepares the set anew, with what it has downloaded"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("name", help="cifar10, or another name of config.data.name")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", help="folder with archives that were brought by hand")
    args = parser.parse_args(argv)
    with entry_point(INTERRUPTED):
        print(prepare(args.name, args.data_dir, args.manual_dir))


def prepare(name: str, data_dir: str | None, manual_dir: str | None) -> str:
    """Downloads and prepares a data set unless it is there; returns a line about it."""
    path = None if manual_dir else binary_files(name, data_dir)
    if path:
        train, test = cifar_binary.read(name, path)
        sizes = f"test {len(test.label):,}, train {len(train.label):,}"
        return f"{path} is whole and needs no preparation: {sizes}"
    builder = find_builder(tfds_name(name), data_dir)
    if not builder.data_path.exists():
        download(builder, manual_dir)
    sizes = ", ".join(
        f"{split} {s.num_examples:,}" for split, s in sorted(builder.info.splits.items())
    )
    return f"{builder.data_path} is prepared: {sizes}"


if __name__ == "__main__":
    main()
