"""Functions are traced for the platforms that they may run on, each once."""

import jax
import pytest

from atkd_jax.nn.platform import cpu_or_default, portable


@pytest.fixture
def traced():
    return []


@pytest.fixture
def nested(traced):
    """Two choices, one within the other; `traced` lists what was traced of the inner one."""

    def named(name, x):
        traced.append(name)
        return x

    def inner(x):
        return cpu_or_default(
            x, cpu=lambda x: named("cpu", x), default=lambda x: named("default", x)
        )

    return lambda x: cpu_or_default(x, cpu=inner, default=inner)


def test_within_a_branch_nothing_is_traced_for_the_other(nested, traced):
    jax.make_jaxpr(nested)(1.0)
    assert sorted(traced) == ["cpu", "default"]


def test_exporters_trace_nothing_for_a_cpu(nested, traced):
    with portable():
        jax.make_jaxpr(nested)(1.0)
    assert traced == ["default"]
