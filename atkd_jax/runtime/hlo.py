"""Reads XLA's optimised HLO: the collective operations of a program, and what it is charged."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

# https://openxla.org/xla/operation_semantics, as `compiled.as_text()` prints them.
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# %name = SHAPE opcode(operands), attributes; the layout in a shape may hold spaces, but no call.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*?)\)(?:,|$)", re.M)
ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")


class Count(NamedTuple):
    """How many collective operations of a kind there are, and the bytes a device puts into them."""

    number: int
    bytes: int


def collectives(text: str) -> dict[str, Count]:
    """Counts the collective operations of a program, {kind: Count}, in alphabetical order.

    An asynchronous one, printed as a start and a done, counts once, and so does one in the body of
    a loop. The bytes are those of the operands: of one device, before anything is exchanged.

    Args:
      text: of an optimised module, `jax.stages.Compiled.as_text()`.
    """
    instructions = INSTRUCTION.findall(text)
    size = {name: shape_bytes(shape) for name, shape, _, _ in instructions}
    found: dict[str, Count] = {}
    for _, _, opcode, operands in instructions:
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            given = sum(size[name] for name in re.findall(r"%([^\s,()]+)", operands))
            so_far = found.get(kind, Count(0, 0))
            found[kind] = Count(so_far.number + 1, so_far.bytes + given)
    return dict(sorted(found.items()))


def seconds(text: str, costs: dict[str, float]) -> float:
    """XLA's estimate of a TPU program's time, in seconds; a loop's body counts once.

    Of the costs it is "optimal_seconds", in which XLA has -1 s for each custom call that joins the
    parts of an array.

    Args:
      text: of the optimised module.
      costs: `jax.stages.Compiled.cost_analysis()`.
    """
    return costs.get("optimal_seconds", 0.0) + text.count('custom_call_target="ConcatBitcast"')


def shape_bytes(shape: str) -> int:
    """The size of an array or a tuple of arrays, "(f32[8,128]{1,0}, s32[])", without padding."""
    total = 0
    for kind, bits, dimensions in ARRAY.findall(shape):
        width = 1 if kind == "pred" else int(bits or 0) / 8
        total += math.ceil(width * math.prod(int(n) for n in dimensions.split(",") if n))
    return total
