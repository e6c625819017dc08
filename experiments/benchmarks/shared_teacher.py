"""Time of training K students under one teacher, against K runs of PyTorch.

    python -m experiments.benchmarks.shared_teacher [--students=6] [--teacher=resnet20]

KD to ResNet-8 on random images of CIFAR-10's size; time depends on neither. The teacher's forward
pass is computed once for all students here, and once for each in PyTorch, which is optional. All
take turns; milliseconds of a step of all students, minimum and median; the ratios are of medians.

Measured on two cores of an Intel Xeon (AVX-512) without other load, jax 0.10.2, PyTorch 2.13,
batch 64: six ResNet-8 under a ResNet-56 388 ms, six times PyTorch's 196 ms: 3.0 times as
fast; under a ResNet-20 354 ms, six times 109 ms: 1.85 times as fast.
"""

from __future__ import annotations

import importlib.util
import statistics

from atkd_jax.command_line import Parser, entry_point, number
from experiments.benchmarks.step import JaxStep, describe_machine, take_turns

TEACHERS = {"resnet20": "r20_r8", "resnet56": "r56_r8"}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--students", type=number(1, 1000), default=6)
    parser.add_argument("--teacher", default="resnet20", choices=TEACHERS)
    parser.add_argument("--seconds", type=number(0, 1e6, float), default=10.0, help="of each")
    args = parser.parse_args()
    pair = TEACHERS[args.teacher]
    one = JaxStep(pair, 64, "float32")
    together = JaxStep(pair, 64, "float32", students=args.students)
    count = together.parallel.steps_per_call
    contenders = {
        f"{args.students} students under one teacher": lambda: together.steps(count),
        "one student": lambda: one.steps(count),
    }
    if importlib.util.find_spec("torch"):
        contenders["one student in PyTorch"] = one.in_torch().step
    times, _ = take_turns(contenders, args.seconds)
    print(f"{args.teacher} -> resnet8, batch 64, {describe_machine()}\n")
    print("| | ms of a step | as fast as one by one |\n|---|---|---|")
    (all_together, *alone) = (
        [1e3 * t / (1 if "PyTorch" in name else count) for t in values]
        for name, values in times.items()
    )
    median = statistics.median(all_together)
    print(f"| {[*times][0]} | {min(all_together):.1f} / {median:.1f} | |")
    for name, values in zip([*times][1:], alone, strict=True):
        ratio = args.students * statistics.median(values) / median
        print(f"| {name} | {min(values):.1f} / {statistics.median(values):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
