"""scikit-learn's handwritten digits: a data set that needs no download."""

from __future__ import annotations

import numpy as np

from atkd_jax.data.info import DIGITS
from atkd_jax.data.memory import Arrays, MemorySource, from_arrays


def read() -> MemorySource:
    """1,797 real handwritten digits, 8x8 in 17 grey levels, that come with scikit-learn.

    Every pixel is doubled in both directions (16x16) so that a network of three resolutions still
    sees 4x4 in its last stage; grey is repeated in three channels, 0..16 becomes 0..255. 36 images
    of every class, always the same ones, are the test set: 1,437 to train on and 360 to test.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    image = np.repeat(grey.repeat(2, axis=1).repeat(2, axis=2)[..., None], 3, axis=-1)
    label = data.target.astype(np.int32)
    draw = np.random.RandomState(0)
    test = np.sort(
        np.concatenate([draw.permutation(np.flatnonzero(label == k))[:36] for k in range(10)])
    )
    train = np.setdiff1d(np.arange(len(label)), test)
    return from_arrays(
        "digits", Arrays(image[train], label[train]), Arrays(image[test], label[test]), DIGITS
    )
