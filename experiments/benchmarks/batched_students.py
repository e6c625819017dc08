"""Whether students under one teacher should be one batched program: what XLA's TPU compiler says.

    python -m experiments.benchmarks.batched_students [--students=6] [--student=resnet8]

Compiles the KD step of K students under a ResNet-56 for one chip of a v5e slice: one after the
other, as in training, and with `jax.vmap`, whose convolutions are in K groups. Needs `pip install
"jax[tpu]"` and no TPU. CIFAR-10's size, batch 64, bfloat16.

With jax 0.10.2 and libtpu 0.0.42.1, six students, in 3 minutes each:

    ResNet-8    one after the other  2.89 ms, 2,203 MB,   655 fused operations
                batched              3.76 ms, 2,776 MB,   201
    ResNet-20   one after the other  7.78 ms, 6,609 MB, 1,339
                batched              9.10 ms, 6,737 MB,   297

So batching does not pay on a TPU. A GPU might gain from fewer kernels: if starting one takes 2 us,
the 1,339 take about as long as 6.6 GB take an H100's memory (2 ms at 3.35 TB/s), so that at most a
factor of two is in it, of which convolutions in groups of 16 to 64 channels lose their part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

from atkd_jax import models
from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.methods import create
from atkd_jax.models.network import Network
from atkd_jax.runtime import hlo, topology
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import Carried, SharedTeacherStep, TrainStep
from atkd_jax.types import Batch, DataInfo
from experiments.benchmarks.step import STATS

STUDENTS = ("resnet8", "resnet20")
CLASSES, BATCH, SHAPE = 10, 64, (32, 32, 3)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--students", type=number(2, 100), default=6)
    parser.add_argument("--student", choices=STUDENTS, default="resnet8")
    args = parser.parse_args()
    topology.leave_accelerators()
    chip = SingleDeviceSharding(topology.devices("v5e:2x2")[0])
    print("| | XLA's estimate, ms | MB read and written | fused operations |\n|---|---|---|---|")
    for name, (step, arguments) in ways(args.student, args.students).items():
        on_chip = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), arguments
        )
        compiled = jax.jit(step, donate_argnums=0).lower(*on_chip).compile()
        text, costs = compiled.as_text(), compiled.cost_analysis()
        fused = text[text.index("\nENTRY") :].count(" fusion(")
        traffic = costs["bytes accessed"] / 1e6
        print(f"| {name} | {1e3 * hlo.seconds(text, costs):.2f} | {traffic:,.0f} | {fused} |")


def ways(name: str, students: int) -> dict:
    """{name: (step, shapes of its arguments)}."""
    teacher, student = (
        Network(models.create(n, CLASSES, dtype=jnp.bfloat16), *STATS) for n in ("resnet56", name)
    )
    objective = Objective(0.1, {"kd": Term(0.9, create("kd"))})
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
    step = TrainStep(student, teacher, objective, tx, steps_per_epoch=1)
    info = DataInfo("random", SHAPE, tuple(map(str, range(CLASSES))), BATCH, BATCH, *STATS)

    def batched(states, variables, batch, rng):
        batch, dropout = step.prepare(batch, rng)
        answer = teacher.infer(variables, batch.image)

        def one(state):
            carried = Carried(state.batch_stats, state.method_state)
            return step.update(state, *step.gradient(state, carried, answer, batch, dropout, rng))

        return jax.vmap(one)(states)

    key = jax.eval_shape(lambda: jax.random.key(0))
    image = jax.ShapeDtypeStruct((BATCH, *SHAPE), np.uint8)
    numbers = jax.ShapeDtypeStruct((BATCH,), np.int32)
    one = jax.eval_shape(lambda key: step.init(key, info, BATCH), key)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((students, *x.shape), x.dtype), one)
    variables = jax.eval_shape(teacher.module.init, key, jax.ShapeDtypeStruct((1, *SHAPE), "f4"))
    rest = variables, Batch(image, numbers, numbers), key
    return {
        "one after the other": (SharedTeacherStep((step,) * students), ((one,) * students, *rest)),
        "batched": (batched, (stacked, *rest)),
    }


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
