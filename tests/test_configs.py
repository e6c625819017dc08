"""Every preset, pair and configuration file can be used."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from atkd_jax import methods, models
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.training import from_config
from atkd_jax.training.optim import Optimizer, Schedule
from configs import common, few_images, pairs
from configs import methods as presets

FILES = sorted(
    path.stem
    for path in Path("configs").glob("*.py")
    if path.stem not in ("__init__", "common", "methods", "pairs")
)


def test_every_method_has_a_preset():
    used = {name for preset in presets.METHODS.values() for name in preset["terms"]}
    assert used == set(methods.METHODS)


@dataclasses.dataclass(frozen=True)
class Own(methods.Method):
    power: float = 2.0
    kind: float | str = "all"
    taps: tuple = ()


def test_a_new_method_has_a_preset_with_its_defaults(monkeypatch):
    """Once it is in METHODS; the presets are made when they are imported."""
    monkeypatch.setitem(methods.METHODS, "own", Own)
    own = {name: value for name, value in vars(presets).items() if name != "__builtins__"}
    try:
        importlib.reload(presets)
        assert presets.METHODS.keys() == own["METHODS"].keys() | {"own"}
        config = common.get_config()
        common.set_method(config, "own")
    finally:
        vars(presets).update(own)
    assert config.ce_weight == 1.0
    fields = dict(weight=1.0, power=2.0, kind="all", taps=())
    assert config.terms.to_dict() == {"own": fields}
    config.terms.own.kind = 0.5  # either type


def test_every_hyper_parameter_stands_in_the_configuration_with_its_default():
    for preset in presets.METHODS:
        config = common.get_config()
        common.set_method(config, preset)
        for name, term in config.terms.to_dict().items():
            given = presets.METHODS[preset]["terms"][name]
            assert term == vars(methods.METHODS[name]()) | given, (preset, name)


def test_sections_of_a_dataclass_make_its_default():
    config = common.get_config()
    for section, kind in {
        "data.augment": Augment,
        "data.mix": Mix,
        "optimizer": Optimizer,
        "schedule": Schedule,
    }.items():
        assert kind(**config[section].to_dict()) == kind(), section


@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize("name", presets.METHODS)
def test_a_preset_makes_an_objective(name, imagenet):
    config = common.get_config()
    common.set_method(config, name, imagenet)
    objective = from_config.objective(config, steps_per_epoch=10)
    assert set(objective.terms) == set(config.terms)


def test_a_warm_up_raises_the_weight_step_by_step():
    config = common.get_config()
    common.set_method(config, "dkd")
    term = from_config.objective(config, steps_per_epoch=10).terms["dkd"]
    weights = [float(term.weight_at(step)) for step in (0, 100, 200, 300)]
    assert weights == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("table", [pairs.PAIRS, pairs.IMAGENET], ids=["cifar", "imagenet"])
def test_every_pair_names_networks_and_methods_that_exist(table):
    for name, pair in table.items():
        assert {pair["teacher"], pair["student"]} <= set(models.MODELS), name
        for method, fields in pair["methods"].items():
            assert fields.keys() - {"weight"} <= vars(methods.METHODS[method]()).keys(), (
                name,
                method,
            )


@pytest.mark.parametrize("file", FILES)
def test_every_configuration_has_only_the_common_keys(file):
    config = importlib.import_module(f"configs.{file}").get_config()
    ours, common_keys = config.to_dict(), common.get_config().to_dict()
    assert ours.keys() == common_keys.keys()
    for key, value in common_keys.items():
        if isinstance(value, dict) and key != "terms":
            assert ours[key].keys() == value.keys(), key
    from_config.objective(config, steps_per_epoch=10)
    from_config.optimizer(config, steps_per_epoch=10)
    from_config.augment(config)


def test_a_pair_changes_the_terms_of_its_method():
    get_config = importlib.import_module("configs.cifar10").get_config
    config = get_config("method=dkd,pair=wrn_40_2_wrn_16_2")
    assert config.terms.dkd.beta == 6.0 and config.student == "wrn_16_2"
    mobile = get_config("method=kd,pair=r50_mv2")
    assert (mobile.optimizer.lr, mobile.teacher.lr) == (0.01, 0.05)
    published = get_config("method=kd,pair=r56_r20,teacher=akamaster")
    assert published.teacher.model == "resnet56a" and published.teacher.mean[0] == 0.485


def test_a_misspelt_option_is_told_the_nearest():
    get_config = importlib.import_module("configs.cifar10").get_config
    for arg, message in {
        "metod=kd": "did you mean 'method'",
        "method=kdd": "did you mean 'kd'",
        "pair=r56_r2": "did you mean 'r56_r20'",
    }.items():
        with pytest.raises(ValueError, match=message):
            get_config(arg)


@pytest.mark.parametrize(
    "arg, message",
    [
        ("images=63", "images=63 is not between a batch, 64, and 50000"),
        ("images=50001", "images=50001 is not between a batch, 64, and 50000"),
        ("images=few", "images=few is no positive whole number"),
        ("steps=0", "steps=0 is no positive whole number"),
    ],
)
def test_numbers_of_images_and_steps_have_bounds(arg, message):
    with pytest.raises(ValueError, match=message):
        few_images.get_config(arg)


def test_the_readme_has_a_row_for_every_method():
    table = Path("README.md").read_text().split("## Methods")[1].split("###")[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(methods.METHODS)
