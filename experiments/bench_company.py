"""What it costs to train K seeds of one method together: alone, in a row, vmap, lax.map.

    python -m experiments.bench_company [--students=4] [--pair=r20_r8] [--method=kd]

Random images of CIFAR-10's size and random weights: cost does not depend on either. Milliseconds
for one step of one student, the median of `--rounds` dispatches of ten steps, compilation apart.

Measured on two cores of an AMD EPYC, jax 0.10.2, `--rounds=2`, ResNet-20 -> ResNet-8, KD, 4 seeds,
ms per step and student: alone 87, in a row 50 and 54 (two tries), lax.map 51, vmap 326.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from atkd_jax.training.program import assemble

from atkd_jax.data import Arrays, MemorySource
from atkd_jax.data.augment import augment
from atkd_jax.data.dataset_info import KNOWN
from atkd_jax.runtime.cache import enable_compilation_cache
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config
from atkd_jax.training.loader import MemoryFeed
from atkd_jax.training.step import AUGMENT
from atkd_jax.types import Batch, PyTree, TrainState
from configs import cifar10, methods, pairs
from experiments import command
from experiments.company import Company, Once, make_company_step

IMAGES, STEPS = 640, 10
WAYS = ["alone", "in a row", "vmap", "lax.map"]


def main() -> None:
    parser = command.Parser(__doc__)
    parser.add_argument("--students", type=command.number(1, 1000), default=4)
    parser.add_argument("--pair", default="r20_r8", choices=pairs.PAIRS)
    parser.add_argument("--method", default="kd", choices=methods.METHODS.keys() - {"none"})
    parser.add_argument("--rounds", type=command.number(1, 10**6), default=5)
    parser.add_argument("--ways", type=command.names("way", WAYS), default=WAYS)
    args = parser.parse_args()
    enable_compilation_cache()
    parallel = Parallel("none")
    configs = []
    for seed in range(args.students):
        config = cifar10.get_config(f"method={args.method},pair={args.pair}")
        config.seed, config.parallel = seed, "none"
        configs.append(config)
    config = configs[0]
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8)
    split = Arrays(image, np.arange(IMAGES, dtype=np.int32) % 10)
    info = dataclasses.replace(KNOWN["cifar10"], num_train=IMAGES, train_label=split.label)
    feed = MemoryFeed(MemorySource(info, split, split), parallel, config.batch_size, 0)
    programs = [assemble(config, parallel, feed) for config in configs]
    master = programs[0].teacher
    weights = master.module.init(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))
    batch = Batch(image[:64], split.label[:64], np.arange(64, dtype=np.int32))
    rest = (weights, batch, jax.random.key(0))

    train_step = programs[0].step_for
    states = [program.fresh() for program in programs]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    # The step is the same number for all, so images and teacher are not computed K times.
    stacked = stacked.replace(step=states[0].step)
    apart = jax.tree.map(lambda _: 0, stacked).replace(step=None)

    def over_vmap(states, *rest):
        after, metrics = jax.vmap(train_step(master), (apart, None, None, None))(states, *rest)
        return after.replace(step=after.step[0]), metrics

    def over_map(states, weights, batch, rng):
        key = jax.random.fold_in(jax.random.fold_in(rng, states.step), AUGMENT)
        position = jnp.arange(len(batch.label))
        once = Once(master)  # asked outside the loop
        once.apply(
            weights, augment(key, batch.image, position, from_config.augment(config)), train=False
        )
        fields = {k: v for k, v in vars(states).items() if k != "step"}
        step = train_step(once)
        after, metrics = jax.lax.map(
            lambda own: step(TrainState(step=states.step, **own), weights, batch, rng), fields
        )
        return after.replace(step=after.step[0]), metrics

    ways = {
        "alone": (train_step(master), states[0], 1),
        "in a row": (make_company_step(programs), Company(tuple(states)), args.students),
        "vmap": (over_vmap, stacked, args.students),
        "lax.map": (over_map, stacked, args.students),
    }
    device = jax.devices()[0].device_kind
    print(f"{args.students} seeds, {args.method}, {args.pair}, batch {config.batch_size}, {device}")
    print("\n| | ms / step / student | compilation, s |\n|---|---|---|")
    for name in args.ways:
        step, state, students = ways[name]
        began = time.perf_counter()
        compiled = jax.jit(several(step)).lower(state, rest, STEPS).compile()
        compiling = time.perf_counter() - began
        ms = 1000 * median_step(compiled, state, rest, args.rounds) / students
        print(f"| {name} | {ms:.1f} | {compiling:.0f} |", flush=True)


def several(step):
    """As training dispatches them: in a loop."""

    def steps(state: PyTree, rest: tuple, count: int) -> PyTree:
        return jax.lax.fori_loop(0, count, lambda _, state: step(state, *rest)[0], state)

    return steps


def median_step(compiled, state: PyTree, rest: tuple, rounds: int) -> float:
    """Seconds of a step; the first dispatch is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, rest, STEPS))
        times.append((time.perf_counter() - began) / STEPS)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
