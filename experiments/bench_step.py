"""How long a distillation step takes, what share of the machine it uses, and PyTorch's beside it.

    python -m experiments.bench_step [--pairs=r56_r20,r50_mv2,imagenet] [--seconds=20]

KD (0.1 CE + 0.9 KL, T = 4) with SGD on random images; weights as initialised: time depends on
neither. Ours is the step that training runs, through Parallel and make_multi_step, without random
crops, since the twin has none; in dispatches of as many steps as training takes (one of a stream),
and beside it of one and of 50. Ours and PyTorch's take turns, step by step, so that a noisy
neighbour meets both; min and median are told, the ratio is of the medians. Where the machine is
shared, the ratio of CPU time (all threads) tells more: PyTorch's threads wait for each other, so
that set OMP_WAIT_POLICY=passive, or they burn CPU time while waiting. FLOPs are XLA's own
count of the compiled step; the peak is a large matrix product of the same run. PyTorch is optional.

Measured on two cores of an AMD EPYC without other load, jax 0.10.2, PyTorch 2.13, float32, median:

    ResNet-56 -> ResNet-20       216 ms, 30 % of the peak; PyTorch  151 ms: 0.70 times as fast
    ResNet-50 -> MobileNetV2    1280 ms, 33 % of the peak; PyTorch 1071 ms: 0.84 times as fast
    the same, ImageNet, batch 32  5.4 s, 12 % of the peak; PyTorch  2.6 s: 0.47 times as fast

What stands in the way is the teachers' forward pass: XLA's convolutions on CPU are slower than
PyTorch's. Ten steps in a dispatch save 15 % of the step, since alone it takes its temporaries from
fresh memory every time.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from atkd_jax import models
from atkd_jax.data.augment import Augment
from atkd_jax.methods import create
from atkd_jax.models.network import Network
from atkd_jax.models.size import count_params
from atkd_jax.nn.batch_norm import BatchNorm
from atkd_jax.runtime.cache import enable_compilation_cache
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training.multi_step import make_multi_step
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import init_state, make_train_step
from atkd_jax.types import Batch, DataInfo
from experiments import command

STATS = ((0.5,) * 3, (0.25,) * 3)
LOOP = 50  # steps of a dispatch in a loop; fewer where they would take longer than --seconds
# name -> teacher, student, image size, classes, batch on an accelerator, batch on CPU
PAIRS = {
    "r56_r20": ("resnet56", "resnet20", 32, 10, 64, 64),
    "r50_mv2": ("resnet50_cifar", "mobilenetv2_cifar", 32, 10, 64, 64),
    "imagenet": ("resnet50", "mobilenetv2", 224, 1000, 256, 32),
}
STREAMED = ("imagenet",)


def main() -> None:
    parser = command.Parser(__doc__)
    parser.add_argument("--pairs", type=command.names("pair", PAIRS), default=[*PAIRS])
    seconds = command.number(0, 1e6, float)
    parser.add_argument("--seconds", type=seconds, default=20.0, help="of each measurement")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    enable_compilation_cache()
    device = jax.devices()[0]
    peak = matmul_flops(args.dtype)
    torch = importlib.util.find_spec("torch") is not None
    print(f"{device.device_kind}, {args.dtype}, matrix product {peak / 1e9:,.1f} GFLOP/s")
    print("ms are min / median\n")
    print(
        "| pair | batch | step ms | images/s | GFLOP | of peak | 1 a dispatch ms |"
        " 50 a dispatch ms | teacher ms | without batch norm ms | PyTorch ms | PyTorch teacher ms |"
        " ours is x as fast | of CPU time |"
    )
    print("|---" * 14 + "|")
    for name in args.pairs:
        print(row(name, peak, args.seconds, args.dtype, torch), flush=True)


def row(name: str, peak: float, seconds: float, dtype: str, torch: bool) -> str:
    """One line of the table."""
    *_, on_accelerator, on_cpu = PAIRS[name]
    batch = on_cpu if jax.devices()[0].platform == "cpu" else on_accelerator
    ours = Ours(name, batch, dtype)
    taken = 1 if name in STREAMED else ours.parallel.steps_per_dispatch
    runs = {"step": lambda: ours.steps(taken), "one": lambda: ours.steps(1)}
    runs |= {"teacher": ours.teacher, "folded": ours.folded}
    if torch:
        twin = ours.twin()
        runs |= {"torch": twin.step, "torch teacher": twin.ask_teacher}
    times, cpu = take_turns(runs, seconds)
    for kind in (times, cpu):
        kind["step"] = [value / taken for value in kind["step"]]
    median = {key: statistics.median(values) for key, values in times.items()}
    told = {key: f"{1e3 * min(times[key]):.1f} / {1e3 * median[key]:.1f}" for key in times}
    told |= {key: "-" for key in ("torch", "torch teacher") if not torch}
    many = max(1, min(LOOP, int(seconds / median["step"])))
    began = time.perf_counter()
    ours.steps(many)
    looped = (time.perf_counter() - began) / many
    speed = ours.flops / median["step"]
    ratio, of_cpu = "-", "-"
    if torch:
        ratio = f"{median['torch'] / median['step']:.2f}"
        of_cpu = f"{statistics.median(cpu['torch']) / statistics.median(cpu['step']):.2f}"
    return (
        f"| {name} | {batch} | {told['step']} | {batch / median['step']:,.0f} |"
        f" {ours.flops / 1e9:.2f} | {speed / peak:.0%} | {told['one']} |"
        f" {1e3 * looped:.1f} ({many} steps) |"
        f" {told['teacher']} | {told['folded']} | {told['torch']} | {told['torch teacher']} |"
        f" {ratio} | {of_cpu} |"
    )


def take_turns(
    runs: dict[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and CPU seconds of every run, in turn, at least three times after a first one."""
    times, cpu = ({name: [] for name in runs} for _ in range(2))
    began, rounds = time.perf_counter(), 0
    while rounds < 4 or time.perf_counter() - began < seconds * len(runs):
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
        rounds += 1
        if rounds == 1:
            began = time.perf_counter()  # the first one compiles
    return tuple({name: values[1:] for name, values in kind.items()} for kind in (times, cpu))


def matmul_flops(dtype: str, size: int = 2048) -> float:
    """Floating-point operations a second in the quickest of ten large matrix products."""
    size = size if jax.devices()[0].platform == "cpu" else 4 * size
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    times = take_turns({"x": lambda: jax.block_until_ready(product(x))}, 3.0)[0]["x"]
    return 2 * size**3 / min(times)


class Ours:
    """The step of one pair as training runs it."""

    def __init__(self, name: str, batch: int, dtype: str):
        self.names, size, classes = PAIRS[name][:2], *PAIRS[name][2:4]
        rng = np.random.RandomState(0)
        image = rng.randint(0, 256, (batch, size, size, 3)).astype(np.uint8)
        self.batch = Batch(image, np.arange(batch, dtype=np.int32) % classes, np.arange(batch))
        self.classes = classes
        info = DataInfo(
            "random", image.shape[1:], tuple(map(str, range(classes))), batch, batch, *STATS
        )
        parallel = self.parallel = Parallel("shard_map", jax.devices()[:1])
        master, student = (
            Network(models.create(n, classes, dtype=jnp.dtype(dtype), bn_axis=axis), *STATS)
            for n, axis in zip(self.names, (None, parallel.axis_name), strict=True)
        )
        objective = Objective(0.1, {"kd": Term(0.9, create("kd"))})
        tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
        key = jax.random.key(0)
        self.state = parallel.init(
            lambda: init_state(student, master, objective, tx, info, batch, key)
        )
        one = np.zeros((1, *image.shape[1:]), np.float32)
        self.weights = parallel.init(lambda: master.module.init(key, one))
        step = make_train_step(student, master, objective, tx, Augment(), parallel.axis)
        # Two batches, of which steps take the first once and then, as an index beyond the end means
        # the last, the second: of one alone XLA would ask the teacher outside of the loop, once.
        two = jax.tree.map(lambda x: np.stack([x, x[::-1]]), self.batch)
        self.stack = parallel.shard_batches(two)
        dispatch = parallel.spmd(
            make_multi_step(step, lambda _, item: item), sharded=(3,), donate=(0,)
        )
        zero = np.int32(0)
        self.dispatch = dispatch.lower(
            self.state, self.weights, (), self.stack, zero, zero, zero
        ).compile()
        self.flops = self.dispatch.cost_analysis()["flops"]  # a loop counts once
        asked = jax.tree.map(jnp.asarray, image.astype(np.float32) / 255)
        self._teacher = jax.jit(lambda w: master.apply(w, asked).logits)

        def without_batch_norm(w):
            """What folding batch norm into the convolutions leaves of it: the shift."""
            with nn.intercept_methods(only_shift):
                return master.apply(w, asked).logits

        self._folded = jax.jit(without_batch_norm)

    def steps(self, count: int) -> None:
        """One dispatch."""
        zero = np.int32(0)
        self.state, sums, _ = self.dispatch(
            self.state, self.weights, (), self.stack, zero, zero + count, zero
        )
        jax.block_until_ready((self.state, sums))

    def teacher(self) -> None:
        jax.block_until_ready(self._teacher(self.weights))

    def folded(self) -> None:
        jax.block_until_ready(self._folded(self.weights))

    def twin(self):
        """The same in PyTorch; checked to have the same number of parameters."""
        from experiments.torch_twin import Twin

        twin = Twin(*self.names, self.classes, self.batch.image, self.batch.label)
        ours = count_params(self.weights), count_params(self.state.params["student"])
        if ours != (twin.teacher_params, twin.params):
            raise RuntimeError(f"the twin of {self.names} has other parameters than ours: {ours}")
        return twin


def only_shift(call, args, kwargs, context):
    """Replaces batch norm by an addition."""
    if isinstance(context.module, BatchNorm):
        return args[0] + context.module.get_variable("params", "bias").astype(args[0].dtype)
    return call(*args, **kwargs)


if __name__ == "__main__":
    main()
