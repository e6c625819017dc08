"""Share of the machine's peak that convolutions and their gradients reach, by kind of layer.

    python -m experiments.benchmarks.convolutions [--batch=64] [--seconds=1]
    CXX=false python -m experiments.benchmarks.convolutions   # XLA's, without native.cc

Every one runs in a loop, as in training, with random inputs in float32. The peak is a large matrix
product of the same run, which itself loses a little at its edges, so that more than 100 % is
possible.

Measured on one core of an Intel Xeon (AVX-512) whose other core was idle, jax 0.10.2, batch 64,
median of three runs, which differ by up to a third. In percent, here and by XLA alone:

                                 values   input's gradient   kernel's gradient
    3x3, 3 -> 16                 56   10           9    8            51   24
    3x3, 16 -> 16                79   44          77   44            82   39
    3x3, 32 -> 32                77   73          71   74            71   63
    3x3, 64 -> 64                77   75          71   86            79   74
    3x3, 128 -> 128              79   96          79  103            74   89
    3x3, 256 -> 256             100  104          94  106            88   99
    3x3, 16 -> 32, stride 2      83   62          32   32            79   28
    3x3, 32 -> 64, stride 2      97   86          64   65            89   39
    3x3, 128 -> 256, stride 2    80  102          74   82            44   48
    1x1, 24 -> 144               51   50          43   41            57   50
    1x1, 64 -> 256               74   74          70   73            67   70
    1x1, 256 -> 64               79   74          76   67            67   26
    1x1, 512 -> 128             100   91          99   91            76   45
    depthwise, 144                9    6           9    6            10    2

Images smaller than the kernel are what XLA for CPU is worst at, for minutes with a batch of 64. On
one core of an AMD EPYC (AVX2), with --batch=16:

    3x3, 512 -> 512, of 2x2      39    1          22    1            66   89

What stands in the way of the rest: depthwise convolutions and products with few channels are bound
by memory, and the input's gradient with stride 2 is XLA's, on an image with zeros between pixels.
(In one convolution without zeros, of all remainders of the stride at once, it gained a factor of
2.8 at 16 channels, 1 % of a step, and nothing where there are more.)
"""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.nn.conv import convolution
from atkd_jax.runtime.devices import Parallel
from atkd_jax.types import Array
from experiments.benchmarks.step import describe_machine, matmul_flops, take_turns

LOOP = 8
# name -> size of the images, kernel [k, k, C, D], stride; depthwise where C is 1
LAYERS = {
    "3x3, 3 -> 16": (32, (3, 3, 3, 16), 1),
    "3x3, 16 -> 16": (32, (3, 3, 16, 16), 1),
    "3x3, 32 -> 32": (16, (3, 3, 32, 32), 1),
    "3x3, 64 -> 64": (8, (3, 3, 64, 64), 1),
    "3x3, 128 -> 128": (16, (3, 3, 128, 128), 1),
    "3x3, 256 -> 256": (8, (3, 3, 256, 256), 1),
    "3x3, 16 -> 32, stride 2": (32, (3, 3, 16, 32), 2),
    "3x3, 32 -> 64, stride 2": (16, (3, 3, 32, 64), 2),
    "3x3, 128 -> 256, stride 2": (16, (3, 3, 128, 256), 2),
    "1x1, 24 -> 144": (32, (1, 1, 24, 144), 1),
    "1x1, 64 -> 256": (32, (1, 1, 64, 256), 1),
    "1x1, 256 -> 64": (32, (1, 1, 256, 64), 1),
    "1x1, 512 -> 128": (16, (1, 1, 512, 128), 1),
    "depthwise, 144": (32, (3, 3, 1, 144), 1),
    "3x3, 512 -> 512, of 2x2": (2, (3, 3, 512, 512), 1),
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--batch", type=number(1, 4096), default=64)
    seconds = number(0, 1e6, float)
    parser.add_argument("--seconds", type=seconds, default=1.0, help="of each measurement")
    args = parser.parse_args()
    peak = matmul_flops("float32")
    print(f"{describe_machine()}, batch {args.batch}, matrix product {peak / 1e9:,.1f} GFLOP/s\n")
    print("| layer | size | values | input's gradient | kernel's gradient |")
    print("|---|---|---|---|---|")
    for name, layer in LAYERS.items():
        shares = [f"{speed / peak:.0%}" for speed in speeds(args.batch, *layer, args.seconds)]
        print(f"| {name} | {layer[0]} | {' | '.join(shares)} |", flush=True)


def speeds(
    batch: int, size: int, shape: tuple[int, ...], stride: int, seconds: float
) -> list[float]:
    """FLOPs per second of values, the input's gradient and the kernel's gradient."""
    pad = shape[0] // 2
    rng = np.random.RandomState(0)
    channels = shape[3] if shape[2] == 1 else shape[2]
    x = jnp.asarray(rng.randn(batch, size, size, channels), jnp.float32)
    kernel = jnp.asarray(rng.randn(*shape), jnp.float32)

    def values(x, kernel, _):
        return convolution(x, kernel, stride, pad)

    def input_gradient(x, kernel, g):
        return jax.vjp(lambda x: values(x, kernel, None), x)[1](g)[0]

    def kernel_gradient(x, kernel, g):
        return jax.vjp(lambda kernel: values(x, kernel, None), kernel)[1](g)[0]

    y = jax.eval_shape(values, x, kernel, None)
    g = jnp.asarray(rng.randn(*y.shape), jnp.float32)
    flops = 2 * y.size * np.prod(shape[:3])
    contenders = {
        f.__name__: repeat(f, x, kernel, g) for f in (values, input_gradient, kernel_gradient)
    }
    times = take_turns(contenders, seconds)[0].values()
    return [LOOP * flops / statistics.median(own) for own in times]


def repeat(function, *args: Array):
    """A call that computes `function(*args)` several times, in a loop."""
    out = jax.eval_shape(function, *args)

    def body(_, state):
        args, _ = jax.lax.optimization_barrier(state)  # else computed once, before the loop
        return args, function(*args)

    looped = jax.jit(
        lambda *args: jax.lax.fori_loop(0, LOOP, body, (args, jnp.zeros(out.shape, out.dtype)))[1],
        compiler_options=Parallel("none").options,
    )
    return lambda: jax.block_until_ready(looped(*args))


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
