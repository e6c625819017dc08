"""Attention plots: names as they are, images of any shape, and no run lost to one."""

import errno
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from images import picture as smooth
from PIL import Image

from atkd_jax.training import attention_plot

NAMES = ["$_$", "50%_$$", r"\frac{", "日本語", "a" * 255, "{}^", "👩\u200d🔬", "Ärger", ""]


@pytest.mark.parametrize("size", [(32, 32), (60, 20), (20, 60)])
def test_every_name_is_drawn_literally_and_in_silence(tmp_path, size, capfd):
    image = np.stack([smooth(i, size) for i in range(len(NAMES))])
    maps = {"8x8": np.random.RandomState(0).rand(len(NAMES), 8, 8)}
    path = tmp_path / "new" / "attention.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention_plot.plot(path, image, NAMES, {"teacher $x_$": maps, "student": maps})
    with Image.open(path) as drawn:
        assert min(drawn.size) > 100
    assert capfd.readouterr().err == ""


def draw(path, sample):
    loader = SimpleNamespace(sample=sample, info=SimpleNamespace(class_names=("ant", "bee")))
    attention_plot.write(path, loader, {"teacher big": (None, ()), "student small": (None, ())})


def test_a_picture_that_fails_is_one_line(tmp_path, capsys):
    def sample(count):
        raise RuntimeError("two\nlines")

    draw(tmp_path / "attention.png", sample)
    [line] = capsys.readouterr().out.splitlines()
    assert "attention.png could not be drawn (RuntimeError: two lines); all else is done" in line


def test_a_folder_in_the_place_of_the_picture_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "attention.png").mkdir()
    monkeypatch.setattr(attention_plot, "attention", lambda *_: {"2x2": np.zeros((2, 2, 2))})
    image = np.stack([smooth(0), smooth(1)])
    draw(tmp_path / "attention.png", lambda count: (image, [0, 1]))
    [line] = capsys.readouterr().out.splitlines()
    assert "could not be drawn (IsADirectoryError" in line


def test_a_full_disk_is_not_kept_quiet(tmp_path):
    def sample(count):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "attention.png", sample)
