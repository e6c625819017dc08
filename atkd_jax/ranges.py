"""What values a setting takes, and the one line that refuses all others."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from atkd_jax.errors import UserError, check_known

INT32 = 2**31 - 1  # what steps, seeds and shapes are counted in


@dataclasses.dataclass(frozen=True)
class Range:
    """Which values are good, in code and in words. `a | b` holds what one of both holds.

    Attributes:
      words: what a value has to be, as in "is not WORDS".
      holds: whether a value is.
      names: the values, if they are names; a misspelt one is told the nearest.
    """

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def __or__(self, other: Range) -> Range:
        return Range(
            f"{self.words} or {other.words}", lambda value: self.holds(value) or other.holds(value)
        )


def whole(least: int, most: int = INT32) -> Range:
    """Whole numbers; neither 2.0 nor True is one."""
    return Range(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(interval: str) -> Range:
    """Whole numbers and fractions in an interval such as "[0, 1)", once they are float32.

    So 1e-50 is no positive number and 1e50 no finite one: training would take them for 0 and inf.
    """
    low, high = map(float, interval[1:-1].split(","))

    def holds(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        try:
            with np.errstate(over="ignore"):
                x = float(np.float32(value))
        except OverflowError:
            return False
        above = low < x if interval[0] == "(" else low <= x
        return above and (x < high if interval[-1] == ")" else x <= high)

    return Range(f"a number in {interval}, as float32", holds)


ZERO = Range("0", lambda value: type(value) is int and value == 0)
FLAG = Range("True or False", lambda value: type(value) is bool)
TEXT = Range("text", lambda value: isinstance(value, str) and "\0" not in value)
NAME = Range("a name", lambda value: TEXT.holds(value) and value != "")


def one_of(*names: str) -> Range:
    """One of some names; an empty one stands for none of them and is not told of."""
    known = tuple(filter(None, names))
    return Range(
        f"one of: {', '.join(known)}",
        lambda value: isinstance(value, str) and value in names,
        known,
    )


def tuple_of(item: Range, *lengths: int) -> Range:
    """Tuples and lists of values that are in a range; of any length unless some are given."""
    count = f" of {' or '.join(map(str, lengths))}" if lengths else ""
    return Range(
        f"a tuple{count}, each {item.words}",
        lambda value: (
            isinstance(value, tuple | list)
            and len(value) in (lengths or (len(value),))
            and all(map(item.holds, value))
        ),
    )


POSITIVE = number("(0, inf)")
NOT_NEGATIVE = number("[0, inf)")
DECAY = number("[0, 1)")  # of a running average
SHARE = number("[0, 1]")
WIDTH = whole(1, 2**16)  # channels of a layer
COLOURS = 3
STATISTICS = {
    kind: Range(
        f"{COLOURS} numbers, one per colour, of pixels in 0..1: each in {interval}",
        tuple_of(number(interval), COLOURS).holds,
    )
    for kind, interval in (("mean", "[0, 1]"), ("std", "(0, 1]"))
}


def check(what: str, value: Any, range: Range) -> None:
    """Raises UserError naming what it is, its value and the range, unless the range holds it."""
    if range.holds(value):
        return
    if isinstance(value, str) and range.names:
        check_known(what, value, range.names)
    raise UserError(f"{what} {' '.join(reprlib.repr(value).split())} is not {range.words}")


def setting(default: Any, range: Range) -> Any:
    """A field of a dataclass, its default and what values it takes; `check_fields` holds it to."""
    return dataclasses.field(default=default, metadata={"range": range})


def of(kind: type) -> dict[str, Range]:
    """The ranges of a dataclass's fields that have one."""
    return {
        field.name: field.metadata["range"]
        for field in dataclasses.fields(kind)
        if "range" in field.metadata
    }


def check_fields(instance: Any) -> None:
    """Raises UserError, as `check` does, if a field of a dataclass is out of its range."""
    for name, range in of(type(instance)).items():
        check(f"{type(instance).__name__}.{name}", getattr(instance, name), range)
