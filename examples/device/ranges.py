"""What int8 loses as the channels of a MobileNetV2 get more different ranges.

    python -m examples.device.ranges --workdir=runs/mv2

Takes a finished run of mobilenetv2_half. Every channel between the batch norm of a ReLU and the
convolution after it is multiplied by a random factor, 2^U(-d, d), and the weights that read it are
divided by it: in float the network stays the same, in int8 it does not.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

from atkd_jax.export import measure, tflite, trained

# (batch norm, the convolution that reads it, the axis of its kernel that does)
PAIRS = (("expand_bn", "depthwise_conv", 3), ("depthwise_bn", "project_conv", 2))


def rescaled(variables, rng: np.random.Generator, octaves: float):
    """The same function with other ranges."""
    variables = jax.tree.map(np.array, variables)
    for name, block in variables["params"].items():
        for norm, reader, axis in PAIRS if name.startswith("group") else ():
            size = block[norm]["scale"].shape
            factor = 2 ** rng.uniform(-octaves, octaves, size).astype(np.float32)
            block[norm]["scale"] *= factor
            block[norm]["bias"] *= factor
            block[reader]["kernel"] /= np.expand_dims(factor, [i for i in range(4) if i != axis])
    return variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run of mobilenetv2_half")
    parser.add_argument("--octaves", type=float, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--draws", type=int, default=2)
    args = parser.parse_args()
    run = trained.read(args.workdir)
    samples = trained.calibration_images(run.source, 256)
    expected, label = trained.reference(run)
    print("| octaves | draw | int8 top-1 | loses |\n|---:|---:|---:|---:|")
    for octaves in args.octaves:
        for draw in range(args.draws if octaves else 1):
            variables = rescaled(run.variables, np.random.default_rng(draw), octaves)
            serve = trained.serving(run.network, variables)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "student_int8.tflite"
                path.write_bytes(
                    tflite.convert(serve, run.source.info.image_shape, samples, "int8")
                )
                images = (image for image, _ in trained.test_images(run.source))
                row = measure.row("int8", path, measure.run(path, images), expected, label)
            print(f"| {octaves:g} | {draw} | {row.top1:.2f} | {row.drop:.2f} |", flush=True)


if __name__ == "__main__":
    main()
