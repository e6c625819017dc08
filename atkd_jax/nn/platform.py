"""Implementations for CPU beside those for accelerators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from atkd_jax.types import Array

_portable = ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Functions traced in this context contain only the operations that accelerators run, which
    exporters support."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def cpu_or_default(*args: Array, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """cpu(*args) when lowered for CPU, otherwise default(*args). Both are traced."""
    if _portable.get():
        return default(*args)
    return jax.lax.platform_dependent(*args, cpu=cpu, default=default)
