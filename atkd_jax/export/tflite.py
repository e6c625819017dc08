"""TFLite by jax2tf and TensorFlow's converter, which also folds batch norm into convolutions."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np

from atkd_jax.export.trained import Serve


def convert(
    serve: Serve, image_shape: tuple[int, int, int], calibration: np.ndarray, kind: str = "float32"
) -> bytes:
    """Returns a TFLite file for single images: input uint8, output float32 logits.

    Args:
      calibration: [N, H, W, 3] uint8, typical images, from which int8 ranges are computed.
      kind: "float32"; "float16": weights are stored as float16; "int8": weights, per channel, and
        activations are int8, and input and output are converted inside.

    Raises:
      ValueError: the calibration images have another shape or dtype.
    """
    if calibration.shape[1:] != image_shape or calibration.dtype != np.uint8:
        raise ValueError(
            f"calibration images are {calibration.dtype} {calibration.shape[1:]}, the network takes"
            f" uint8 {image_shape}"
        )
    with _quiet():
        import tensorflow as tf
        from jax.experimental import jax2tf

        tf.config.set_visible_devices([], "GPU")
        function = tf.function(
            jax2tf.convert(serve, native_serialization_platforms=("cpu",)),
            input_signature=[tf.TensorSpec((1, *image_shape), tf.uint8, name="image")],
            autograph=False,
        )
        concrete = function.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], function)
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        return converter.convert()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the converter's output, which C++ writes too, unless the body raises."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as chatter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            chatter.seek(0)
            os.write(terminal, chatter.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
