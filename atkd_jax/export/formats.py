"""The export formats, by name: `FORMATS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from atkd_jax.errors import UserError, check_known
from atkd_jax.export import onnx, stablehlo, tflite
from atkd_jax.export.trained import Serve


class Format(NamedTuple):
    """One kind of file.

    Attributes:
      file: its name; `runtime` picks the interpreter by its suffix.
      convert: (serve, image_shape, calibration images) -> content.
      packages: required to convert and run it.
      exact: computes in float32, so its logits must equal JAX's.
    """

    file: str
    convert: Callable[[Serve, tuple[int, int, int], np.ndarray], bytes]
    packages: tuple[str, ...]
    exact: bool = False


LITE = ("tensorflow", "ai_edge_litert")
FORMATS: dict[str, Format] = {
    "tflite": Format("student.tflite", tflite.convert, LITE, exact=True),
    "tflite_float16": Format(
        "student_float16.tflite", partial(tflite.convert, kind="float16"), LITE
    ),
    "tflite_int8": Format("student_int8.tflite", partial(tflite.convert, kind="int8"), LITE),
    "onnx": Format(
        "student.onnx",
        lambda serve, image_shape, _: onnx.convert(serve, image_shape),
        ("onnx", "onnxruntime"),
        exact=True,
    ),
    "stablehlo": Format(
        "student.stablehlo",
        lambda serve, image_shape, _: stablehlo.convert(serve, image_shape),
        (),
        exact=True,
    ),
}

INSTALL = {
    "tensorflow": "tensorflow-cpu",
    "ai_edge_litert": '-e ".[litert]"',
    "onnx": '-e ".[onnx]"',
    "onnxruntime": '-e ".[onnx]"',
}


def check(names: list[str]) -> None:
    """Raises UserError if a format is unknown or a package that it needs is missing."""
    for name in names:
        check_known("format", name, FORMATS)
        for package in FORMATS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"the format {name} needs {package}, which is not installed:"
                    f" pip install {INSTALL[package]}"
                )
