"""Implementations for CPU beside those for accelerators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax

from atkd_jax.types import Array

# What the function being traced is for, if that is known.
_platform: ContextVar[Literal["cpu", "default", None]] = ContextVar("platform", default=None)


@contextlib.contextmanager
def _tracing_for(platform: Literal["cpu", "default"]) -> Iterator[None]:
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def portable() -> contextlib.AbstractContextManager[None]:
    """Functions traced in this context contain only the operations that accelerators run, which
    exporters support."""
    return _tracing_for("default")


def cpu_or_default(*args: Array, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """cpu(*args) when lowered for CPU, otherwise default(*args). Both are traced.

    Within one of the two, the platform is known, and nothing is traced for the other one.
    """
    if known := _platform.get():
        return (cpu if known == "cpu" else default)(*args)
    return jax.lax.platform_dependent(
        *args, cpu=_tracing_for("cpu")(cpu), default=_tracing_for("default")(default)
    )
