"""Every key of the configuration has a range, and every hostile value of it one line."""

import dataclasses
import math
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from atkd_jax import methods
from atkd_jax.training import from_config, settings
from atkd_jax.training.dry_run import make_plan
from atkd_jax.training.loop import train_and_evaluate
from configs import cifar10, common, digits

HOSTILE = [
    -1, 0, 2**31, 2**40, math.nan, math.inf, -math.inf, "x", "", None, True, (), ("a",), [1, 2], {},
]  # fmt: skip
# Of these, what a key takes and why; a key that is not here takes none of them.
TAKEN = {
    "zero means none, as it is, or the first": (
        (0,),
        "seed data.subset.images data.subset.seed data.augment.pad data.augment.randaugment"
        " data.augment.rotate data.augment.magnitude"
        " data.augment.brightness data.mix.probability teacher.epochs teacher.expect_top1"
        " label_smoothing optimizer.reference_batch optimizer.momentum optimizer.rms_decay ema"
        " steps_per_dispatch checkpoint.every_steps terms.crd.momentum terms.rtk.ema"
        " terms.rtk.top_k terms.rtk.select_warmup "
        + " ".join(f"terms.{name}.warmup_steps" for name in methods.METHODS),
    ),
    "a number from 0 that float32 holds": (
        (0, 2**31, 2**40),
        "ce_weight data.mix.mixup data.mix.cutmix teacher.lr optimizer.weight_decay"
        " schedule.warmup_epochs terms.rkd.distance_weight terms.rkd.angle_weight terms.dkd.alpha"
        " terms.dkd.beta terms.aft.beta terms.rtk.threshold_factor "
        + " ".join(f"terms.{name}.weight terms.{name}.warmup_epochs" for name in methods.METHODS),
    ),
    "a number above 0 that float32 holds": (
        (2**31, 2**40),
        "optimizer.lr optimizer.rms_eps schedule.factor terms.kd.temperature terms.dkd.temperature"
        " terms.aft.temperature terms.aft.rate_temperature terms.crd.temperature"
        " terms.self_attention.scale terms.self_attention.temperature",
    ),
    "yes or no": (
        (True,),
        "data.augment.flip optimizer.nesterov optimizer.decay_all sync_batch_norm dry_run"
        " terms.fitnet.use_relu terms.crd.other_classes terms.reviewkd.student_pre"
        " terms.rtk.query_relu terms.rtk.rescale terms.rtk.softpool_exact_gradient"
        " terms.self_attention.center terms.self_attention.relative"
        " terms.self_attention.balance",
    ),
    "a file, folder or data set, which is looked for later": (("x",), "data.name"),
    "the same, or none": (("x", ""), "data.data_dir teacher.weights teacher.weights_key"),
    "none": (("",), "teacher.model topology"),
    "a feature, which is looked for in the networks": (("x",), "terms.fitnet.tap"),
    "the same, or all": (
        ((), ("a",)),
        "terms.at.taps terms.vid.taps terms.nst.taps terms.fsp.taps terms.self_attention.taps",
    ),
    "statistics of the student's data": (((),), "teacher.mean teacher.std"),
    "epochs, in a tuple or a list": (((), [1, 2]), "schedule.milestones"),
    "no terms, no options": (({},), "terms data.options"),
}


def everything() -> dict:
    """Every key that a configuration can have, with good values."""
    config = common.get_config().to_dict()
    config["data"]["options"] = dict(
        image_size=32, crop_ratio=0.875, extra=False, train="train", test="test"
    )
    config["terms"] = {
        name: dict(weight=1.0, warmup_epochs=0.0, warmup_steps=0)
        | settings.defaults(kind).to_dict()
        for name, kind in methods.METHODS.items()
    }
    return config


def keys(section: dict, prefix=""):
    for key, value in section.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def put(key, value) -> ConfigDict:
    """A configuration with this value, whatever its type."""
    config = section = everything()
    *path, last = key.split(".")
    for name in path:
        section = section[name]
    section[last] = value
    return ConfigDict(config)


@pytest.mark.parametrize("key", list(keys(everything())))
def test_a_hostile_value_is_refused_in_one_line_unless_it_means_something(key):
    taken = [value for values, names in TAKEN.values() if key in names.split() for value in values]
    if key in ("data.options.train", "data.options.test"):
        taken = ["x"]
    if key == "data.options.image_size":  # 0 is the images' own
        taken = [0]
    if key == "data.options.extra":
        taken = [True]
    for value in HOSTILE:
        if any(value == other and type(value) is type(other) for other in taken):
            settings.check(put(key, value))
            continue
        with pytest.raises(ValueError, match=re.escape(key)) as told:
            settings.check(put(key, value))
        line = str(told.value)
        assert "\n" not in line, line
        if value != {}:  # which lacks keys, and that is said
            assert repr(value) in line and " is not " in line or "choose one of" in line, line


def test_every_reason_is_of_a_key_that_exists():
    named = {key for _, names in TAKEN.values() for key in names.split()}
    assert named <= set(keys(everything()))


def test_every_key_has_a_range_and_every_range_a_key():
    flat = {key for key, *_ in settings._values(common.get_config(), settings.RANGES)}
    config = common.get_config().to_dict()
    config["data"]["options"] = config["terms"] = {}  # which differ between data and methods
    leaves = {
        key for key in keys(config) if at(config, key) == {} or not hasattr(at(config, key), "keys")
    }
    assert flat == leaves


def at(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def test_keys_that_are_missing_or_unknown_are_named():
    config = everything()
    del config["teacher"]
    with pytest.raises(ValueError, match="has no key teacher; start from get_config"):
        settings.check(ConfigDict(config))
    del (config := everything())["teacher"]["lr"]
    with pytest.raises(ValueError, match=r"has no key teacher\.lr; start from"):
        settings.check(ConfigDict(config))
    for key, message in {
        "bach_size": "unknown key of the configuration 'bach_size'; did you mean 'batch_size'",
        "optimizer.learning": "unknown key of the configuration 'optimizer.learning'",
        "data.options.imagesize": "did you mean 'data.options.image_size'",
        "terms.kdd": "unknown method 'kdd'; did you mean 'kd'",
        "terms.kd.temprature": "unknown hyper-parameter of kd 'temprature'; did you mean",
        "terms.afd.axis_name": "unknown hyper-parameter of afd 'axis_name'",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            settings.check(put(key, 1))
    with pytest.raises(ValueError, match="is of type dict, not a ConfigDict; start from"):
        settings.check(everything())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule.milestones": (5, 9, 5)}, r"milestones \(5, 9, 5\) names an epoch twice"),
        ({"optimizer.nesterov": True, "optimizer.momentum": 0.0}, "nesterov needs momentum"),
        ({"ce_weight": 0, "terms": {}}, "there is nothing to learn"),
        ({"ce_weight": 0, "terms": {"kd": {"weight": 0.0}}}, "there is nothing to learn"),
        ({"terms": {"kd": {}}}, "terms.kd has no weight; add one, such as terms.kd.weight=1"),
        ({"topology": "v5e:4x8"}, "^topology v5e:4x8 is only compiled for; add --config.dry_run=T"),
        ({"topology": "v5d:4x8", "dry_run": True}, "^unknown generation of TPU .* 'v5d'; did you"),
        (
            {"topology": "v5e:4x8", "dry_run": True, "parallel": "none"},
            "^parallel=none runs on one",
        ),
    ],
)
def test_values_that_make_no_sense_together(changes, message):
    config = common.get_config().to_dict()
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        (at(config, section) if section else config)[last] = value
    with pytest.raises(ValueError, match=message):
        settings.check(ConfigDict(config))


def test_a_field_without_a_range_takes_anything(monkeypatch):
    """As somebody's own method may have one."""

    @dataclasses.dataclass(frozen=True)
    class Own(methods.Method):
        power: float = 2.0

    monkeypatch.setitem(methods.METHODS, "own", Own)
    settings.check(put("terms.own", {"weight": 1.0, "power": "two"}))
    with pytest.raises(ValueError, match="unknown hyper-parameter of own 'powr'"):
        settings.check(put("terms.own", {"weight": 1.0, "powr": 2.0}))


def test_nothing_is_read_or_written_before_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr("atkd_jax.data.Digits.load", None)
    for config in (put("data.augment.pad", -1), put("teacher", {}), put("terms.kd.weight", None)):
        with pytest.raises(ValueError, match=r"data\.augment\.pad|teacher|terms\.kd\.weight"):
            train_and_evaluate(config, tmp_path / "run")
        with pytest.raises(ValueError, match=r"data\.augment\.pad|teacher|terms\.kd\.weight"):
            make_plan(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "key, value",
    [
        ("epochs", 10**7), ("teacher.epochs", 10**7), ("schedule.milestones", (1, 10**7)),
        ("schedule.warmup_epochs", 1e7), ("terms.kd.warmup_epochs", 1e7),
    ],
)  # fmt: skip
def test_steps_are_counted_in_int32(key, value):
    settings.check_steps(put(key, value), 200)
    with pytest.raises(ValueError, match=rf"^{key} .* is 10000000000 steps.* 2147483 at most"):
        settings.check_steps(put(key, value), 1000)


def test_a_run_whose_steps_cannot_be_counted_is_refused():
    config = cifar10.get_config("method=none")
    config.epochs = 2**31 - 1
    with pytest.raises(ValueError, match="^epochs 2147483647 is .* steps of 781 an epoch"):
        make_plan(config)


def warnings(config, **changes):
    for key, value in changes.items():
        section, _, last = key.rpartition("__")
        target = config
        for part in filter(None, section.split("__")):
            target = target[part]
        target[last] = value
    return settings.schedule_warnings(config)


def test_a_learning_rate_that_never_decays_is_told():
    [line] = warnings(cifar10.get_config("method=kd"), epochs=3)
    assert line == (
        "schedule.milestones (150, 180, 210) lie beyond epochs=3: the learning rate never decays;"
        " set schedule.milestones below 3, or schedule.name=cosine"
    )
    [line] = warnings(cifar10.get_config("method=kd"), epochs=180)
    assert line.startswith("schedule.milestones (180, 210) lie beyond epochs=180: ")
    assert "decays less often" in line
    [line] = warnings(cifar10.get_config("method=kd"), schedule__milestones=())
    assert line.startswith("schedule.milestones is empty: the learning rate never decays; set some")
    assert not warnings(cifar10.get_config("method=kd"), epochs=211)
    assert not warnings(cifar10.get_config("method=kd"), epochs=3, schedule__name="cosine")


@pytest.mark.parametrize("epochs, steps, total", [(2.0, 0, 20), (2.0, 50, 50), (0.0, 50, 50)])
def test_the_longer_warm_up_of_a_weight_counts(epochs, steps, total):
    config = digits.get_config("method=kd")
    config.terms.kd.update(warmup_epochs=epochs, warmup_steps=steps)
    weight = from_config.objective(config, steps_per_epoch=10).terms["kd"].weight_at
    at = [0, total // 2, total, 2 * total]
    np.testing.assert_allclose([weight(step) for step in at], [0, 0.45, 0.9, 0.9], rtol=1e-6)


def test_a_warm_up_that_never_ends_is_told():
    [line] = warnings(digits.get_config("method=kd"), schedule__warmup_epochs=12)
    assert line == (
        "schedule.warmup_epochs=12 is not shorter than epochs=12: the learning rate never arrives;"
        " set schedule.warmup_epochs below 12"
    )
    [line] = warnings(digits.get_config("method=dkd"), epochs=20)
    assert line.startswith(
        "terms.dkd.warmup_epochs=20 is not shorter than epochs=20: the weight of"
    )
    assert not warnings(digits.get_config("method=dkd"), epochs=21)


def test_the_training_of_a_teacher_is_looked_at_too():
    config = digits.get_config("method=kd")
    [line] = warnings(config, teacher__epochs=2)
    assert line.startswith("schedule.warmup_epochs=2 is not shorter than teacher.epochs=2: ")
    assert not warnings(config, teacher__weights="published.pth")
    assert not warnings(digits.get_config("method=none"), teacher__epochs=2)


def test_warnings_are_true():
    """What is said of a rate is what the schedule does in the last step."""
    config = cifar10.get_config("method=kd")
    for epochs, factor in ((3, 1.0), (180, 0.1), (240, 0.001)):
        config.epochs = epochs
        last = float(from_config.schedule(config, 10)(epochs * 10 - 1))
        assert last == pytest.approx(factor * config.optimizer.lr, rel=1e-5)
    config.schedule.warmup_epochs, config.epochs = 3.0, 3
    assert float(from_config.schedule(config, 10)(29)) < config.optimizer.lr


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_refuses_what_the_configuration_refuses(name):
    """Every field has a range; made in Python, a method names the field."""
    kind = methods.METHODS[name]
    fields = vars(kind())
    assert settings.ranges.of(kind).keys() == fields.keys()
    for field in fields:
        for value in HOSTILE:
            if settings.ranges.of(kind)[field].holds(value):
                kind(**{field: value})
                continue
            with pytest.raises(ValueError, match=field) as told:
                methods.create(name, **{field: value})
            assert "\n" not in str(told.value)
