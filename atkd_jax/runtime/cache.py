"""JAX's persistent compilation cache."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, which makes a second start quick.

    `$JAX_COMPILATION_CACHE_DIR`, if set, takes precedence.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX adds it late
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "atkd_jax" / "xla"))
