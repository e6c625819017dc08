"""What is known of a teacher's weights before they are read."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from small_runs import small_config
from weight_files import tensor, write_zip

from atkd_jax.errors import UserError
from atkd_jax.training import settings, teachers
from atkd_jax.types import DataInfo

INFO = DataInfo(
    "noise", (8, 8, 3), tuple("abc"), 9, 9, (0.4, 0.5, 0.6), (0.2, 0.2, np.float64(0.3))
)
THIRDS, FIFTHS = (0.3, 0.3, 0.3), (0.2, 0.2, 0.2)


@pytest.fixture
def config(npz, tmp_path):
    """With weights, all of them zero, of a network that does not exist."""
    path = tmp_path / "net.pth.tar"
    safetensors.numpy.save_file({"conv1.weight": np.zeros((2, 3), "f4")}, path)
    config = small_config(npz, "kd")
    config.teacher.weights = str(path)
    return config


NONE = ()
STATISTICS = {
    "as published": (THIRDS, FIFTHS, None),
    "none": (NONE, NONE, None),
    "of networks that do not normalise": ((0, 0, 0), (1, 1, 1), None),
    "mean in 0..255": ((125.3, 123.0, 113.9), FIFTHS, r"teacher.mean \(125.3,.* is not .* by 255"),
    "std in 0..255": (
        THIRDS,
        (63.0, 62.1, 66.7),
        r"teacher.std .* is not .*each in \(0, 1\].* by 255",
    ),
    "std zero": (THIRDS, (0.2, 0.0, 0.2), r"teacher.std .* is not .*each in \(0, 1\]"),
    "std negative": (THIRDS, (0.2, -0.2, 0.2), r"teacher.std .* is not .*each in \(0, 1\]"),
    "mean negative": ((-0.1, 0.2, 0.2), FIFTHS, r"teacher.mean .* is not .*each in \[0, 1\]"),
    "not a number": (THIRDS, (float("nan"),) * 3, "teacher.std .* is not 3 numbers"),
    "infinite": ((float("inf"),) * 3, FIFTHS, "teacher.mean .* is not 3 numbers"),
    "text": (("0.1", "0.1", "0.1"), FIFTHS, "teacher.mean .* is not 3 numbers"),
    "one value": ((0.5,), FIFTHS, "teacher.mean .* is not 3 numbers, one per colour"),
    "four values": (THIRDS, (0.2,) * 4, "teacher.std .* is not 3 numbers, one per colour"),
    "mean alone": (THIRDS, NONE, "teacher.mean is given and teacher.std is not; give both"),
    "std alone": (NONE, FIFTHS, "teacher.std is given and teacher.mean is not; give both"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_are_of_pixels_in_0_to_1_or_refused(case, config):
    mean, std, message = STATISTICS[case]
    config.teacher.mean, config.teacher.std = mean, std
    if message is None:
        given = {"mean": mean, "std": std} if mean else {}
        settings.check(config)
        assert teachers.read_facts(config) == given
        return
    with pytest.raises(UserError, match=message) as caught:
        settings.check(config)
        teachers.read_facts(config)
    assert "\n" not in str(caught.value)


def test_a_file_is_known_by_its_content(config, tmp_path):
    assert teachers.read_facts(config) == {}
    (tmp_path / "net.pth").write_text("<!DOCTYPE html>")
    config.teacher.weights = str(tmp_path / "net.pth")
    with pytest.raises(ValueError, match="net.pth: it is a web page and not the weights"):
        teachers.read_facts(config)


def test_the_home_folder_may_be_a_tilde(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config.teacher.weights = "~/net.pth.tar"
    assert teachers.read_facts(config) == {}


def test_a_key_needs_a_file(config, tmp_path):
    config.teacher.weights_key = "ema"
    for weights, message in ((str(tmp_path), "drop weights_key"), ("", "not given")):
        config.teacher.weights = weights
        with pytest.raises(ValueError, match=message):
            teachers.read_facts(config)


@pytest.fixture
def loaded(config, monkeypatch):
    """The tensors of a file that become a network's: `load` without converting them."""
    monkeypatch.setattr(teachers.convert, "to_flax", lambda name, tensors, abstract: tensors)

    def load():
        network = teachers.describe(config, INFO)
        return teachers.load(config, network, INFO, Path(config.teacher.weights))

    return load


def test_it_is_said_whose_statistics_a_teacher_gets(config, loaded, capsys):
    loaded()
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("with those of noise, (0.4, 0.5, 0.6) and (0.2, 0.2, 0.3)")
    config.teacher.mean, config.teacher.std = THIRDS, FIFTHS
    loaded()
    assert not capsys.readouterr().out


def test_it_is_said_which_of_several_weights_are_read(config, loaded, capsys, tmp_path):
    config.teacher.mean, config.teacher.std = THIRDS, FIFTHS
    sets = {"state_dict": {"a.b": tensor()}, "state_dict_ema": {"a.c": tensor()}}
    write_zip(tmp_path / "net.pth", sets, {"0": np.arange(24, dtype="f4")})
    config.teacher.weights = str(tmp_path / "net.pth")
    assert list(loaded()) == ["a.b"]
    [line] = capsys.readouterr().out.splitlines()
    assert "state_dict is read, not state_dict_ema; teacher.weights_key chooses" in line
    config.teacher.weights_key = "state_dict_ema"
    assert list(loaded()) == ["a.c"]
    assert not capsys.readouterr().out
