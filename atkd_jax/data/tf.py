"""TensorFlow and TensorFlow Datasets, imported on first use and kept off the accelerators."""

from __future__ import annotations

import functools
import os
from types import ModuleType

from atkd_jax.errors import UserError


@functools.cache
def import_tf() -> tuple[ModuleType, ModuleType]:
    """TensorFlow and TensorFlow Datasets, with every accelerator hidden from them.

    Raises:
      UserError: they are not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and logged at start
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except Exception as error:  # a TensorFlow that does not fit its libraries raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"this data set is read with TensorFlow, which cannot be imported ({reason}):"
            " pip install tensorflow-cpu tensorflow-datasets importlib_resources;"
            " digits, npz:PATH and folder:PATH of images of one size need neither"
        ) from None
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf, tfds
