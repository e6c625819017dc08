"""A range holds what training can compute with, and says in one line what it does not hold."""

import dataclasses
import math

import pytest

from atkd_jax import ranges
from atkd_jax.ranges import number, one_of, setting, tuple_of, whole


@pytest.mark.parametrize(
    "range, good, bad",
    [
        (whole(1), [1, 2**31 - 1], [0, -1, 2**31, 2**40, 1.0, True, math.nan, "1", None, ()]),
        (whole(2, 3), [2, 3], [1, 4]),
        (number("[0, 1)"), [0, 0.0, 0.5, 1e-300], [-1e-30, 1, 1.0, 0.9999999999, True, False]),
        (number("(0, 1]"), [1, 1e-30], [0, 1e-50, 1.01]),  # 1e-50 is 0 in float32
        (ranges.POSITIVE, [1, 3e38], [0, math.nan, math.inf, -math.inf, 1e50, 10**400, "1", None]),
        (number("(-inf, inf)"), [-5, 0, 5.0], [math.nan, math.inf, -math.inf, -(10**400)]),
        (ranges.FLAG, [True, False], [0, 1, "True", None]),
        (ranges.TEXT, ["", "x"], ["a\0b", b"x", None, 1]),
        (ranges.NAME, ["x"], ["", None]),
        (one_of("", "sgd"), ["", "sgd"], ["sgdd", None, 1, ("sgd",)]),
        (tuple_of(whole(0)), [(), (1,), [1, 2]], [1, "12", (1.5,), (1, "a"), {}, None]),
        (tuple_of(whole(0), 0, 2), [(), (1, 2)], [(1,), (1, 2, 3)]),
        (ranges.POSITIVE | one_of("sqrt_d"), [10.0, "sqrt_d"], [0, "sqrt", None]),
    ],
)
def test_a_range_holds_what_it_says(range, good, bad):
    for value in good:
        ranges.check("key", value, range)
    for value in bad:
        with pytest.raises(ValueError, match="key") as told:
            ranges.check("key", value, range)
        assert "\n" not in str(told.value) and len(str(told.value)) < 150


def test_the_line_names_key_value_and_range():
    with pytest.raises(ValueError, match=r"^lr -1 is not a number in \(0, inf\), as float32$"):
        ranges.check("lr", -1, ranges.POSITIVE)
    with pytest.raises(ValueError, match=r"^betas \(1, 2\) is not a tuple of 2, each a number in"):
        ranges.check("betas", (1, 2), tuple_of(ranges.DECAY, 2))
    with pytest.raises(ValueError, match="^unknown name 'sgdd'; did you mean 'sgd'"):
        ranges.check("name", "sgdd", one_of("sgd", "adamw"))
    with pytest.raises(ValueError, match="^name None is not one of: sgd, adamw$"):
        ranges.check("name", None, one_of("sgd", "adamw"))


def test_fields_of_a_dataclass_are_held_to_their_ranges():
    @dataclasses.dataclass(frozen=True)
    class Thing:
        free: str = "anything"
        size: int = setting(3, whole(1))

        def __post_init__(self):
            ranges.check_fields(self)

    assert Thing().size == 3 and list(ranges.of(Thing)) == ["size"]
    with pytest.raises(ValueError, match="^Thing.size 0 is not a whole number from 1"):
        Thing(size=0)
    with pytest.raises(ValueError, match="^Thing.size 0 "):
        dataclasses.replace(Thing(), size=0)
