"""Time of a distillation step, its share of the machine's peak, and the same step in PyTorch.

    python -m experiments.benchmarks.step [--pairs=r56_r20,r50_mv2,imagenet] [--seconds=20]

KD (0.1 CE + 0.9 KL, T = 4) with SGD on random images and initial weights: time depends on neither.
The JAX step is the one that training runs, without random crops, which the PyTorch step has not; in
calls of as many steps as training takes (one of a stream), and in calls of 1 and of 50. Both take
turns, step by step, so that background load affects both equally. Min and median are printed; the
ratio is of the medians. On a shared machine the ratio of CPU time (all threads) is more reliable:
set OMP_WAIT_POLICY=passive, or PyTorch's threads burn CPU time while they wait for each other.
FLOPs are XLA's count for the step, on a GPU, where it has none, those of the networks, backward
passes counted twice; the peak is a large matrix product of the same run.
PyTorch is optional.

Measured on two cores of an Intel Xeon (AVX-512) without other load, jax 0.10.2, PyTorch 2.13,
float32, median:

    ResNet-56 -> ResNet-20       255 ms, 41 % of the peak; PyTorch  272 ms: 1.07 times as fast
    ResNet-50 -> MobileNetV2    1629 ms, 43 % of the peak; PyTorch 2400 ms: 1.47 times as fast
    the same, ImageNet, batch 32 3.6 s,  34 % of the peak; PyTorch  4.2 s: 1.16 times as fast

experiments/benchmarks/convolutions.py has the shares of single convolutions. The rest of a step,
30 % of the first pair's time and 40 % of the third's, is batch norm, activations and sums: they
read and write whole activations, which do not fit into the cache.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atkd_jax import models
from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.methods import create
from atkd_jax.models.network import Network
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.nn import native
from atkd_jax.nn.platform import portable
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.setup import compile_steps
from atkd_jax.training.step import SharedTeacherStep, TrainStep
from atkd_jax.types import Batch, DataInfo
from experiments import arguments

if TYPE_CHECKING:
    from experiments.benchmarks.torch_baseline import TorchStep

STATS = ((0.5,) * 3, (0.25,) * 3)
LOOP = 50  # steps of a long call; fewer where they would take longer than --seconds
# name -> teacher, student, image size, classes, batch on an accelerator, batch on CPU
PAIRS = {
    "r56_r20": ("resnet56", "resnet20", 32, 10, 64, 64),
    "r50_mv2": ("resnet50_cifar", "mobilenetv2_cifar", 32, 10, 64, 64),
    "imagenet": ("resnet50", "mobilenetv2", 224, 1000, 256, 32),
}
SHARED = {  # for shared_teacher
    "r20_r8": ("resnet20", "resnet8", 32, 10, 64, 64),
    "r56_r8": ("resnet56", "resnet8", 32, 10, 64, 64),
}
STREAMED = ("imagenet",)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--pairs", type=arguments.names("pair", PAIRS), default=[*PAIRS])
    seconds = number(0, 1e6, float)
    parser.add_argument("--seconds", type=seconds, default=20.0, help="of each measurement")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    peak = matmul_flops(args.dtype)
    torch = importlib.util.find_spec("torch") is not None
    print(f"{describe_machine()}, {args.dtype}, matrix product {peak / 1e9:,.1f} GFLOP/s")
    print("ms are min / median\n")
    print(
        "| pair | batch | step ms | images/s | GFLOP | of peak | 1 per call ms |"
        " 50 per call ms | teacher ms | PyTorch ms | PyTorch teacher ms |"
        " JAX is x as fast | of CPU time |"
    )
    print("|---" * 13 + "|")
    for name in args.pairs:
        print(row(name, peak, args.seconds, args.dtype, torch), flush=True)


def describe_machine() -> str:
    """The device and the versions, in words."""
    device = jax.devices()[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = f"{len(os.sched_getaffinity(0))} CPU cores, {native.describe()}"
    torch = importlib.util.find_spec("torch")
    versions = ["jax", *(["torch"] if torch else [])]
    return ", ".join([kind, *(f"{name} {importlib.metadata.version(name)}" for name in versions)])


def row(name: str, peak: float, seconds: float, dtype: str, torch: bool) -> str:
    """One line of the table."""
    *_, on_accelerator, on_cpu = PAIRS[name]
    batch = on_cpu if jax.devices()[0].platform == "cpu" else on_accelerator
    jax_step = JaxStep(name, batch, dtype)
    per_call = 1 if name in STREAMED else jax_step.parallel.steps_per_call
    contenders = {"step": lambda: jax_step.steps(per_call), "one": lambda: jax_step.steps(1)}
    contenders |= {"teacher": jax_step.teacher}
    if torch:
        torch_step = jax_step.in_torch()
        contenders |= {"torch": torch_step.step, "torch teacher": torch_step.forward_teacher}
    times, cpu = take_turns(contenders, seconds)
    for kind in (times, cpu):
        kind["step"] = [value / per_call for value in kind["step"]]
    median = {key: statistics.median(values) for key, values in times.items()}
    cells = {key: f"{1e3 * min(times[key]):.1f} / {1e3 * median[key]:.1f}" for key in times}
    cells |= {key: "-" for key in ("torch", "torch teacher") if not torch}
    many = max(1, min(LOOP, int(seconds / median["step"])))
    began = time.perf_counter()
    jax_step.steps(many)
    looped = (time.perf_counter() - began) / many
    speed = jax_step.flops / median["step"]
    ratio, of_cpu = "-", "-"
    if torch:
        ratio = f"{median['torch'] / median['step']:.2f}"
        of_cpu = f"{statistics.median(cpu['torch']) / statistics.median(cpu['step']):.2f}"
    return (
        f"| {name} | {batch} | {cells['step']} | {batch / median['step']:,.0f} |"
        f" {jax_step.flops / 1e9:.2f} | {speed / peak:.0%} | {cells['one']} |"
        f" {1e3 * looped:.1f} ({many} steps) |"
        f" {cells['teacher']} | {cells['torch']} | {cells['torch teacher']} |"
        f" {ratio} | {of_cpu} |"
    )


def take_turns(
    contenders: dict[str, Callable[[], object]], seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and CPU seconds of every contender, in turn, at least three times after a first one.

    Args:
      seconds: of each.
    """
    times, cpu = ({name: [] for name in contenders} for _ in range(2))
    began, rounds = time.perf_counter(), 0
    while rounds < 4 or time.perf_counter() - began < seconds * len(contenders):
        for name, call in contenders.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
        rounds += 1
        if rounds == 1:
            began = time.perf_counter()  # the first one compiles
    return tuple({name: values[1:] for name, values in kind.items()} for kind in (times, cpu))


def matmul_flops(dtype: str, size: int = 2048) -> float:
    """Floating-point operations per second in the fastest of several large matrix products."""
    size = size if jax.devices()[0].platform == "cpu" else 4 * size
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    times = take_turns({"x": lambda: jax.block_until_ready(product(x))}, 3.0)[0]["x"]
    return 2 * size**3 / min(times)


class JaxStep:
    """The step of one pair as training runs it, for one student or several under one teacher.

    Attributes:
      flops: of one step.
    """

    def __init__(self, name: str, batch: int, dtype: str, students: int = 1):
        pair = (PAIRS | SHARED)[name]
        self.names, size, classes = pair[:2], *pair[2:4]
        rng = np.random.RandomState(0)
        image = rng.randint(0, 256, (batch, size, size, 3)).astype(np.uint8)
        self.batch = Batch(image, np.arange(batch, dtype=np.int32) % classes, np.arange(batch))
        self.classes, self.dtype = classes, dtype
        info = DataInfo(
            "random", image.shape[1:], tuple(map(str, range(classes))), batch, batch, *STATS
        )
        parallel = self.parallel = Parallel("shard_map", jax.devices()[:1])
        teacher, student = (
            Network(models.create(n, classes, dtype=jnp.dtype(dtype), bn_axis=axis), *STATS)
            for n, axis in zip(self.names, (None, parallel.axis.name), strict=True)
        )
        step = TrainStep(
            student,
            teacher,
            Objective(0.1, {"kd": Term(0.9, create("kd"))}),
            optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9)),
            steps_per_epoch=1,
            axis=parallel.axis,
        )
        if students > 1:
            step = SharedTeacherStep((step,) * students)
        key = jax.random.key(0)
        self.state = parallel.init(lambda: step.init(key, info, batch))
        one = np.zeros((1, *image.shape[1:]), np.float32)
        self.weights = parallel.init(lambda: teacher.module.init(key, one))
        # Two batches, of which a call takes the first once and then, as an index beyond the end
        # means the last, the second: with a single one XLA would move the teacher's forward pass
        # out of the loop.
        two = jax.tree.map(lambda x: np.stack([x, x[::-1]]), self.batch)
        self.stack = parallel.shard_batches(two)
        zero = np.int32(0)
        args = self.state, self.weights, (), self.stack, zero, zero, zero

        def lowered() -> jax.stages.Lowered:
            return compile_steps(step, parallel, lambda _, item: item).lower(*args)

        self.multi_step = lowered().compile()
        with portable():  # XLA does not see into native convolutions; it counts a loop once
            counted = lowered().cost_analysis()
        if counted is None:  # on a GPU
            t, s = (count_macs(net.module, image.shape[1:]) for net in (teacher, student))
            counted = {"flops": 2 * batch * (t + 3 * s * students)}
        self.flops = counted["flops"]
        prepared = jax.tree.map(jnp.asarray, image.astype(np.float32) / 255)
        self._teacher = jax.jit(
            lambda w: teacher.infer(w, prepared).logits, compiler_options=parallel.options
        )

    def steps(self, count: int) -> None:
        """Takes steps in one call."""
        zero = np.int32(0)
        self.state, sums, *_ = self.multi_step(
            self.state, self.weights, (), self.stack, zero, zero + count, zero
        )
        jax.block_until_ready((self.state, sums))

    def teacher(self) -> None:
        jax.block_until_ready(self._teacher(self.weights))

    def in_torch(self) -> TorchStep:
        """The same step in PyTorch, with the same numbers of parameters."""
        from experiments.benchmarks.torch_baseline import TorchStep

        arrays = self.batch.image, self.batch.label
        torch_step = TorchStep(*self.names, self.classes, *arrays, self.dtype)
        params = count_params(self.weights), count_params(self.state.params["student"])
        if params != (torch_step.teacher_params, torch_step.params):
            raise RuntimeError(f"{self.names} have other parameters in PyTorch than {params}")
        return torch_step


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
