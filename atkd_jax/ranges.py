"""Ranges: the values that a setting accepts, and the error for all others."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from atkd_jax.errors import UserError, check_known

INT32 = 2**31 - 1  # the largest step, seed or size of an axis


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a setting accepts. `a | b` accepts those of either.

    Attributes:
      words: what a value has to be, as in "is not WORDS".
      holds: whether a value is accepted.
      names: the accepted values if they are names; the error for another suggests the nearest.
    """

    words: str
    holds: Callable[[object], bool]
    names: tuple[str, ...] = ()

    def __or__(self, other: Range) -> Range:
        return Range(
            f"{self.words} or {other.words}", lambda value: self.holds(value) or other.holds(value)
        )


def whole(least: int, most: int = INT32) -> Range:
    """Integers from `least` to `most`; neither 2.0 nor True is one."""
    return Range(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(interval: str) -> Range:
    """Numbers that lie in an interval such as "[0, 1)" after conversion to float32.

    So 1e-50 is not positive and 1e50 not finite: training would use 0 and infinity.
    """
    low, high = map(float, interval[1:-1].split(","))

    def holds(value: object) -> bool:
        if type(value) not in (int, float):
            return False
        try:
            with np.errstate(over="ignore"):
                x = float(np.float32(value))  # type: ignore[arg-type]  # checked above
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
    """One of some names; an empty one, for none of them, is not listed in messages."""
    known = tuple(filter(None, names))
    return Range(
        f"one of: {', '.join(known)}",
        lambda value: isinstance(value, str) and value in names,
        known,
    )


def tuple_of(item: Range, *lengths: int) -> Range:
    """Tuples and lists whose items are in a range, of the given lengths or else of any."""
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
EMPTY = Range("()", lambda value: isinstance(value, tuple | list) and not value)
# Of the pixels of a data set, per channel.
STATISTICS = {
    kind: Range(
        f"{COLOURS} numbers, one per colour, each in {interval}, of pixels in 0..1 (divide those of"
        " pixels in 0..255 by 255)",
        tuple_of(number(interval), COLOURS).holds,
    )
    for kind, interval in (("mean", "[0, 1]"), ("std", "(0, 1]"))
}


def check(what: str, value: object, range: Range) -> None:
    """Raises UserError with the setting's name, its value and its range, unless it is accepted."""
    if range.holds(value):
        return
    if isinstance(value, str) and range.names:
        check_known(what, value, range.names)
    raise UserError(f"{what} {' '.join(reprlib.repr(value).split())} is not {range.words}")


def setting(default: Any, range: Range) -> Any:
    """A dataclass field with a default and a range, which `check_fields` enforces.

    A default of None, for a value that is chosen later, may be outside of the range.
    """
    return dataclasses.field(default=default, metadata={"range": range})


def of(kind: type) -> dict[str, Range]:
    """The ranges of a dataclass's fields, as far as they have one."""
    return {
        field.name: field.metadata["range"]
        for field in dataclasses.fields(kind)
        if "range" in field.metadata
    }


def check_fields(instance: object) -> None:
    """Raises UserError, as `check` does, if a field of a dataclass is out of its range."""
    for name, range in of(type(instance)).items():
        value = getattr(instance, name)
        if value is not None or getattr(type(instance), name) is not None:  # the default
            check(f"{type(instance).__name__}.{name}", value, range)
