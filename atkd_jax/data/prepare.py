"""Downloads and prepares a data set: python -m atkd_jax.data.prepare cifar10 [--data_dir DIR].

Without a network, bring the archives under their upstream names (for CIFAR-10
cifar-10-binary.tar.gz) and name their folder: --manual_dir DIR. Nothing is downloaded twice.
Without TensorFlow, CIFAR's archive in data_dir is all that is needed; it is then checked.
"""

from __future__ import annotations

import argparse
import sys

from atkd_jax.data import binary_files, cifar_binary, tfds_name
from atkd_jax.data.prepared import download, find_builder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m atkd_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="cifar10, or another name of config.data.name")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", help="folder with archives that were brought by hand")
    args = parser.parse_args(argv)
    try:
        path = None if args.manual_dir else binary_files(args.name, args.data_dir)
        if path:
            train, test = cifar_binary.read(args.name, path)
            sizes = f"test {len(test.label):,}, train {len(train.label):,}"
            print(f"{path} is whole and needs no preparation: {sizes}")
            return
        builder = find_builder(tfds_name(args.name), args.data_dir)
        if not builder.data_path.exists():
            download(builder, args.manual_dir)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command prepares the set anew, with what it has downloaded")
    sizes = ", ".join(
        f"{name} {s.num_examples:,}" for name, s in sorted(builder.info.splits.items())
    )
    print(f"{builder.data_path} is prepared: {sizes}")


if __name__ == "__main__":
    main()
