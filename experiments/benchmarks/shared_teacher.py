"""Cost of training K seeds of one method together: alone, in a row, vmap, lax.map.

    python -m experiments.benchmarks.shared_teacher [--students=4] [--pair=r20_r8] [--method=kd]

Random images of CIFAR-10's size and random weights: cost does not depend on either. Milliseconds
for one step of one student, the median of `--rounds` calls of ten steps, without compilation.

Measured on two cores of an AMD EPYC, jax 0.10.2, `--rounds=2`, ResNet-20 -> ResNet-8, KD, 4 seeds,
ms per step and student: alone 87, in a row 50 and 54 (two tries), lax.map 51, vmap 326.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.data import Cifar
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training.setup import make_setup
from atkd_jax.training.step import METHOD, Carried, SharedTeacherStep, Step
from atkd_jax.types import Array, Batch, Metrics, PyTree, TrainState
from configs import cifar10, methods, pairs
from experiments import arguments

IMAGES, STEPS = 640, 10
WAYS = ["alone", "in a row", "vmap", "lax.map"]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--students", type=number(1, 1000), default=4)
    parser.add_argument("--pair", default="r20_r8", choices=pairs.PAIRS)
    parser.add_argument("--method", default="kd", choices=methods.METHODS.keys() - {"none"})
    parser.add_argument("--rounds", type=number(1, 10**6), default=5)
    parser.add_argument("--ways", type=arguments.names("way", WAYS), default=WAYS)
    args = parser.parse_args()
    config = cifar10.get_config(f"method={args.method},pair={args.pair}")
    size = config.batch_size
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (size, 32, 32, 3)).astype(np.uint8)
    label = np.arange(IMAGES, dtype=np.int32) % 10
    batch = Batch(image, label[:size], np.arange(size, dtype=np.int32))
    info = dataclasses.replace(Cifar("cifar10").info(), num_train=IMAGES, train_label=label)
    step = make_setup(config, Parallel("none"), info, IMAGES // size).step
    shared = SharedTeacherStep((step,) * args.students)
    weights = step.teacher.module.init(jax.random.key(9), jnp.zeros((1, 32, 32, 3)))
    rest = (weights, batch, jax.random.key(0))

    states = tuple(step.init(jax.random.key(k), info, size) for k in range(args.students))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    # The step is the same number for all, so images and teacher are not computed K times.
    stacked = stacked.replace(step=states[0].step)
    apart = jax.tree.map(lambda _: 0, stacked).replace(step=None)

    def over_vmap(states: TrainState, *rest: PyTree) -> tuple[TrainState, Metrics]:
        after, metrics = jax.vmap(step, (apart, None, None, None))(states, *rest)
        return after.replace(step=after.step[0]), metrics

    def over_map(
        states: TrainState, weights: PyTree, batch: Batch, rng: Array
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(rng, states.step)
        batch, dropout = step.prepare(batch, rng)
        t = step.teach(weights, batch.image)

        def one(fields: dict[str, PyTree]) -> tuple[TrainState, Metrics]:
            state = TrainState(step=states.step, **fields)
            carried = Carried(state.batch_stats, state.method_state)
            rng_method = jax.random.fold_in(rng, METHOD)
            return step.update(state, *step.gradient(state, carried, t, batch, dropout, rng_method))

        fields = {key: value for key, value in vars(states).items() if key != "step"}
        after, metrics = jax.lax.map(one, fields)
        return after.replace(step=after.step[0]), metrics

    ways = {
        "alone": (step, states[0], 1),
        "in a row": (shared, states, args.students),
        "vmap": (over_vmap, stacked, args.students),
        "lax.map": (over_map, stacked, args.students),
    }
    device = jax.devices()[0].device_kind
    print(f"{args.students} seeds, {args.method}, {args.pair}, batch {size}, {device}")
    print("\n| | ms / step / student | compilation, s |\n|---|---|---|")
    for name in args.ways:
        way, state, students = ways[name]
        began = time.perf_counter()
        compiled = jax.jit(several(way)).lower(state, rest, STEPS).compile()
        compiling = time.perf_counter() - began
        ms = 1000 * median_step(compiled, state, rest, args.rounds) / students
        print(f"| {name} | {ms:.1f} | {compiling:.0f} |", flush=True)


def several(step: Step) -> Callable[[PyTree, tuple, int], PyTree]:
    """Several steps in a loop, as in training."""

    def steps(state: PyTree, rest: tuple, count: int) -> PyTree:
        return jax.lax.fori_loop(0, count, lambda _, state: step(state, *rest)[0], state)

    return steps


def median_step(compiled: jax.stages.Compiled, state: PyTree, rest: tuple, rounds: int) -> float:
    """Seconds of a step; the first call is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, rest, STEPS))
        times.append((time.perf_counter() - began) / STEPS)
    return statistics.median(times[1:])


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
