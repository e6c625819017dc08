"""Small real runs for the tests: noise images whose classes differ in brightness, ResNet-8."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from configs import digits

TRAIN, TEST, CLASSES = 96, 20, 3


def write_npz(path: Path, train=TRAIN, test=TEST, classes=CLASSES) -> Path:
    rng = np.random.RandomState(0)
    arrays = {}
    for split, num in (("train", train), ("test", test)):
        label = np.arange(num) % classes
        noise = rng.randint(0, 64, (num, 8, 8, 3))
        arrays[f"x_{split}"] = (noise + 60 * label[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = label
    np.savez(path, **arrays)
    return path


def small_config(npz: Path, method: str = "none"):
    """Four epochs of six steps on one device."""
    config = digits.get_config(f"method={method}")
    config.data.name = f"npz:{npz}"
    config.student = config.teacher.model = "resnet8"
    config.batch_size, config.epochs, config.teacher.epochs = 16, 4, 2
    config.parallel = "none"
    return config


def command(npz: Path, workdir: Path, *overrides: str, method: str = "none") -> list[str]:
    """The same as `small_config`, typed at the command line."""
    return [
        sys.executable,
        "-m",
        "atkd_jax.main",
        f"--config=configs/digits.py:method={method}",
        f"--workdir={workdir}",
        f"--config.data.name=npz:{npz}",
        "--config.student=resnet8",
        "--config.teacher.model=resnet8",
        "--config.batch_size=16",
        "--config.epochs=4",
        "--config.teacher.epochs=2",
        "--config.parallel=none",
        *overrides,
    ]


def run(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, **kwargs), capture_output=True, text=True, timeout=300, check=False
    )
