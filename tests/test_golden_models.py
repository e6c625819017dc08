"""The networks compute what RepDistiller's do."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from atkd_jax import models
from atkd_jax.models import convert, shufflenet

GOLDEN = Path(__file__).parent / "golden"


def torch_layout(array):
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


@pytest.mark.parametrize(
    ("file", "name", "stages"),
    [
        ("net_resnet8", "resnet8", 3),
        ("net_wrn_16_1", "wrn_16_1", 3),
        ("net_MobileNetV2", "mobilenetv2_half", 4),
    ],
)
def test_networks_agree_with_the_benchmark(file, name, stages):
    """Logits and features of RepDistiller's networks and weights, computed with PyTorch."""
    golden = np.load(GOLDEN / f"{file}.npz")
    tensors = {x[2:]: torch_layout(golden[x]) for x in golden if x.startswith("w.")}
    module = models.create(name, 10)
    like = jax.eval_shape(module.init, jax.random.key(0), golden["image"])
    variables = convert.to_flax(name, tensors, like)
    out = jax.jit(module.apply)(variables, golden["image"])
    np.testing.assert_allclose(out.logits, golden["logits"], atol=1e-4)
    taps = ["stem", *(f"stage{i + 1}" for i in range(stages)), "pooled"]
    assert sum(x.startswith("feat") for x in golden) == len(taps)
    for i, tap in enumerate(taps):
        np.testing.assert_allclose(out.feats[tap], golden[f"feat{i}"], atol=1e-4, err_msg=tap)
    feats = out.feats
    if name == "wrn_16_1":  # taps after the batch norm that follows: of a block, and of a group
        np.testing.assert_array_equal(feats["block2"], np.maximum(feats["stage1_pre"], 0))
        np.testing.assert_array_equal(feats["block6"], np.maximum(feats["stage3_pre"], 0))
    elif name == "resnet8":
        for i in (1, 2, 3):
            np.testing.assert_array_equal(feats[f"stage{i}"], np.maximum(feats[f"stage{i}_pre"], 0))
            np.testing.assert_array_equal(feats[f"block{i}"], feats[f"stage{i}"])
    else:
        np.testing.assert_array_equal(feats["block17"], feats["stage4"])
        assert all(feats[f"stage{i}"].min() < 0 for i in (1, 2, 3, 4))


def draw(shapes):
    """A state dict of these shapes: the networks are too large to keep their weights here."""
    rng = np.random.RandomState(0)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            tensors[name] = rng.uniform(0.5, 1.5, shape)
        else:
            scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
            tensors[name] = scale * rng.standard_normal(shape)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg13", "shufflenetv1", "shufflenetv2"])
def test_larger_networks_agree_with_the_benchmark(name):
    """Logits, and means over H and W of features, of RepDistiller's networks in PyTorch."""
    golden = np.load(GOLDEN / f"net_{name}.npz")
    image = np.random.RandomState(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    module = models.create(name, 10)
    template = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = convert.to_flax(name, draw(json.loads(str(golden["shapes"]))), template)
    logits, feats = jax.jit(module.apply)(variables, image)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    stages = [x for x in feats if x.startswith("stage") and not x.endswith("_pre")]
    taps = ["stem", *sorted(stages)]
    assert sum(x.startswith("feat") for x in golden) == len(taps) + 1
    np.testing.assert_allclose(feats["pooled"], golden[f"feat{len(taps)}"], atol=1e-5)
    for i, tap in enumerate(taps):
        mean = feats[tap].mean((1, 2))
        np.testing.assert_allclose(mean, golden[f"feat{i}"], atol=1e-5, err_msg=tap)
    for i, stage in enumerate(taps[1:], 1):
        pre = golden[f"pre{i}"]
        if name == "shufflenetv2":  # whose own are not shuffled
            pre = shufflenet.shuffle(pre, 2)
        np.testing.assert_allclose(feats[f"{stage}_pre"].mean((1, 2)), pre, atol=1e-5)
        np.testing.assert_array_equal(feats[stage], np.maximum(feats[f"{stage}_pre"], 0))
