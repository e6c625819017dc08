"""Cost of each method: step time, parameters, state and memory, beside plain CE.

    python -m experiments.benchmarks.methods [--teacher=resnet56] [--student=resnet20] \
      [--methods=kd,at]

Random images of CIFAR-10's size, batch 64, initial weights: cost does not depend on either. The
ratio is the result; it is taken within one run. Steps are timed in the same calls as in training,
without compilation: the median of `--rounds` calls. Peak memory is XLA's plan: arguments, results
and temporaries.

Measured on two cores of an AMD EPYC without other load, jax 0.10.2, ResNet-56 -> ResNet-20: plain
CE 161 ms a step and 152 MiB, KD 225 ms (the teacher is a quarter of it). Most methods cost as much
as KD, 1.4 to 1.6 times plain CE. CRD 1.8 (it gathers 16,384 negatives of 128 numbers for each image
from memory banks of 52 MB; 386 MiB), RTK 1.8 (478 MiB), ReviewKD 2.1 (its maps of 64 channels at
all three resolutions; 414 MiB).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from atkd_jax import models
from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.models.size import count_params
from atkd_jax.training import from_config
from atkd_jax.training.loader import make_loader
from atkd_jax.training.setup import compile_steps, make_parallel, make_setup, steps_per_call
from configs import common, methods
from experiments import arguments

BATCH, CLASSES, EXAMPLES = 64, 10, 50_000


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--teacher", default="resnet56", choices=models.MODELS)
    parser.add_argument("--student", default="resnet20", choices=models.MODELS)
    parser.add_argument(
        "--methods", type=arguments.names("method", methods.METHODS), default=[*methods.METHODS]
    )
    parser.add_argument("--rounds", type=number(1, 10**6), default=5)
    args = parser.parse_args()
    print(f"{args.teacher} -> {args.student}, batch {BATCH}, {jax.devices()[0].device_kind}\n")
    print("| method | ms / step | x CE | extra parameters | state bytes | peak MiB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(Path(folder) / "images.npz")
        plain = None
        for method in ["none", *filter(lambda m: m != "none", args.methods)]:
            config = common.get_config()
            config.data.name = f"npz:{data}"
            config.data.augment.update(pad=4, flip=True)
            common.set_method(config, method)
            config.teacher.model, config.student = args.teacher, args.student
            config.optimizer.lr = 1e-20  # nothing to learn from noise, which makes training diverge
            row = measure(config, args.rounds)
            plain = plain or row["ms"]
            print(
                f"| {method} | {row['ms']:.1f} | {row['ms'] / plain:.2f} | {row['params']:,} |"
                f" {row['state']:,} | {row['peak'] / 2**20:.0f} |",
                flush=True,
            )


def write_images(path: Path) -> Path:
    """Writes noise with as many examples as CIFAR-10, since CRD's memory bank grows with them."""
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (EXAMPLES, 32, 32, 3)).astype(np.uint8)
    label = np.arange(EXAMPLES) % CLASSES
    np.savez(path, x_train=image, y_train=label, x_test=image[:64], y_test=label[:64])
    return path


def measure(config: ConfigDict, rounds: int) -> dict[str, float]:
    """Milliseconds of a step, parameters and state of the method, and the memory of the step."""
    parallel = make_parallel(config)
    loader = make_loader(from_config.source(config), parallel, config.batch_size, config.seed)
    setup = make_setup(config, parallel, loader.info, loader.steps_per_epoch)
    key = jax.random.key(1)
    image = np.zeros((1, *loader.info.image_shape), np.float32)
    teacher, weights = setup.step.teacher, ()
    if teacher:
        # Halved: an untrained network of 56 layers would overflow.
        weights = parallel.init(
            lambda: jax.tree.map(lambda x: x / 2, teacher.module.init(key, image))
        )
    state = parallel.init(setup.init_state, np.int32(0))
    size = sum(x.nbytes for x in jax.tree.leaves(state.method_state))
    params = count_params(state.params["method"])
    per_call = steps_per_call(config, parallel, loader.in_memory)
    stack, start, stop = next(loader.train(0, 0, per_call))
    rest = (weights, loader.train_data, stack, start, stop, np.int32(0))
    multi_step = compile_steps(setup.step, parallel, loader.fetch).lower(state, *rest).compile()
    memory = multi_step.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        state, _, last, taken = multi_step(state, *rest)
        jax.block_until_ready((state, last))
        times.append((time.perf_counter() - began) / (stop - start))
        if taken < stop - start or not np.isfinite(last["loss"]):
            raise RuntimeError("the loss is not finite, so that nothing was measured")
    return {
        "ms": 1000 * statistics.median(times[1:]),
        "params": params,
        "state": size,
        "peak": peak - loader.train_data[0].nbytes - loader.train_data[1].nbytes,
    }


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
