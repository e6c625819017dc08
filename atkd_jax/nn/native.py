"""Convolutions of float32 arrays on CPU, compiled from native.cc on first use.

XLA's are slow for few channels: their matrix products are too narrow. Needs a C++ compiler, `c++`
or `$CXX`; the library is kept in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax import cache
from atkd_jax.types import Array

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cc")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w", "-x", "c++")
FUNCTIONS = ("Convolve", "KernelGradient", "Depthwise", "DepthwiseKernelGradient")


@functools.cache
def available() -> bool:
    """Compiles, loads and registers the functions; false where that is not possible or no use."""
    if jax.default_backend() != "cpu":
        return False
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        log.warning("without a C++ compiler (c++ or $CXX) convolutions are slow: %s", error)
        return False
    for name in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"atkd_jax.{name}", capsule, platform="cpu")
    return True


def describe() -> str:
    """Which convolutions a CPU computes, in words."""
    return "native convolutions" if available() else "no C++ compiler, so slow convolutions"


def build() -> Path:
    """The compiled library, from the cache folder if source, compiler and CPU are the same.

    Raises:
      OSError: no compiler, or it fails, or the folder cannot be written.
    """
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}"]
    # The predefined macros contain the compiler's version and the CPU's instruction sets.
    macros = run(*command, "-dM", "-E", os.devnull)
    key = hashlib.sha256(SOURCE.read_bytes() + macros + jax.__version__.encode()).hexdigest()[:16]
    library = cache.folder("native") / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            part = Path(folder) / library.name
            run(*command, str(SOURCE), "-o", str(part))
            part.replace(library)
    return library


def run(*command: str) -> bytes:
    """What a command writes to stdout.

    Raises:
      OSError: it cannot be started, or it fails.
    """
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise OSError(f"{command[0]} failed: {said}")
    return done.stdout


def call(function: str, shape: tuple[int, ...], a: Array, b: Array, stride: int, pad: int) -> Array:
    """Calls one of `FUNCTIONS`; the result has the shape `shape`.

    Convolve(x, kernel) -> y and KernelGradient(x, gradient of y) -> gradient of the kernel, for x
    [B, H, W, C], kernel [k, k', C, D], y [B, H', W', D], and D a multiple of 16. Depthwise and
    DepthwiseKernelGradient are the same for kernels [3, 3, 1, C].
    """
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    ffi_call = jax.ffi.ffi_call(f"atkd_jax.{function}", out, vmap_method="sequential")
    return ffi_call(a, b, stride=np.int64(stride), pad=np.int64(pad))
