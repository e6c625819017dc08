"""The user's cache folder: what any run has compiled is read from disk by the next."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax

LIMIT = 2 * 2**30  # bytes; a run leaves 2 MB on a CPU, tens of MB on an accelerator


def folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/atkd_jax/NAME`, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atkd_jax" / name


def enable_compilation_cache() -> None:
    """Keeps the programs that JAX compiles in `folder("xla")`.

    Small programs are kept as well: reading one takes milliseconds, compiling it a tenth of a
    second. `$JAX_COMPILATION_CACHE_DIR`, if set, takes precedence, with JAX's other settings.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # JAX adds it late
        return
    prune(folder("xla"), LIMIT)
    jax.config.update("jax_compilation_cache_dir", str(folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def prune(root: Path, limit: int) -> None:
    """Deletes the files of a folder that were not used for longest, until `limit` bytes are left.

    Not `jax_compilation_cache_max_size`, which locks the folder at every access, and writes nothing
    any more once a process was killed between the two files of an entry. Without a lock, a program
    that another process was about to read is compiled instead.
    """
    used = []
    with contextlib.suppress(FileNotFoundError):
        for path in root.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process deletes as well
                stat = path.stat()
                used.append((max(stat.st_atime_ns, stat.st_mtime_ns), stat.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
