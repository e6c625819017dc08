"""Size, time and memory of a network as device files, with random initial weights.

    pip install -e ".[litert,onnx]"
    python -m examples.device.bench --model=mobilenetv2 --size=224 --classes=1000

None of them depends on what the weights are. Accuracy does: python -m atkd_jax.export measures it.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax import models
from atkd_jax.export import formats, measure, trained
from atkd_jax.models.network import Network

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="mobilenetv2", help="a name of atkd_jax.models.MODELS")
parser.add_argument("--size", type=int, default=224, help="height and width of the images")
parser.add_argument("--classes", type=int, default=1000)
parser.add_argument("--formats", default="tflite,tflite_float16,tflite_int8,onnx")
parser.add_argument("--runs", type=int, default=200, help="images that the time is the median of")
args = parser.parse_args()

shape = (args.size, args.size, 3)
images = np.random.default_rng(0).integers(0, 256, (args.runs, *shape), np.uint8)
network = Network(models.create(args.model, args.classes), (0.5,) * 3, (0.25,) * 3)
variables = jax.jit(network.module.init)(jax.random.key(0), jnp.zeros((1, *shape)))
expected = np.asarray(jax.jit(network.apply)(variables, images[:8] / np.float32(255)).logits)
serve = trained.serving(network, variables)

print("| format | size MB | ms / image | memory MB |\n|---|---:|---:|---:|")
for name in args.formats.split(","):
    formats.check([name])
    form = formats.FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / form.file
        path.write_bytes(form.convert(serve, shape, images[:32]))
        answers, size = measure.run(path, [images]), path.stat().st_size / 1e6
    if form.exact:
        measure.check_numerics(name, answers.logits[: len(expected)], expected)
    cost = f"{1e3 * np.median(answers.seconds):.2f} | {answers.memory / 1e6:.0f}"
    print(f"| {name} | {size:.2f} | {cost} |", flush=True)
