"""The networks have the published sizes, taps and outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import models
from atkd_jax.models import shufflenet
from atkd_jax.models.size import count_params
from atkd_jax.models.wrn import WideResNet

# (10 classes, 100 classes, 1000 classes), from the papers and the authors' code.
PARAMS = {
    "resnet8a": (75_290, 81_140, None),
    "resnet14a": (172_506, 178_356, None),
    "resnet20a": (269_722, 275_572, None),
    "resnet32a": (464_154, 470_004, None),
    "resnet44a": (658_586, 664_436, None),
    "resnet56a": (853_018, 858_868, None),
    "resnet110a": (1_727_962, 1_733_812, None),
    "resnet8": (78_042, 83_892, None),
    "resnet14": (175_258, 181_108, None),
    "resnet20": (272_474, 278_324, None),
    "resnet32": (466_906, 472_756, None),
    "resnet44": (661_338, 667_188, None),
    "resnet56": (855_770, 861_620, None),
    "resnet110": (1_730_714, 1_736_564, None),
    "resnet8x4": (1_210_410, 1_233_540, None),
    "resnet32x4": (7_410_730, 7_433_860, None),
    "wrn_16_1": (175_066, 180_916, None),
    "wrn_16_2": (691_674, 703_284, None),
    "wrn_28_2": (1_467_610, 1_479_220, None),
    "wrn_40_1": (563_930, 569_780, None),
    "wrn_40_2": (2_243_546, 2_255_156, None),
    "resnet18_cifar": (11_173_962, 11_220_132, None),
    "resnet34_cifar": (21_282_122, 21_328_292, None),
    "resnet50_cifar": (23_520_842, 23_705_252, None),
    "resnet18": (None, None, 11_689_512),
    "resnet34": (None, None, 21_797_672),
    "resnet50": (None, None, 25_557_032),
    "mobilenetv1": (None, None, 4_231_976),
    "mobilenetv2": (2_236_682, 2_351_972, 3_504_872),
    "mobilenetv2_x0.5": (700_490, 815_780, 1_968_680),
    "mobilenetv2_cifar": (2_236_682, 2_351_972, None),
    "mobilenetv2_cifar_x0.5": (700_490, 815_780, None),
    "mobilenetv2_half": (697_546, 812_836, None),
    "vgg8": (3_918_858, 3_965_028, None),
    "vgg13": (9_416_010, 9_462_180, None),
    "shufflenetv1": (862_768, 949_258, None),
    "shufflenetv2": (1_263_278, 1_355_528, None),
}

# Image size -> (height, channels) of stem, stage1, ..., and the pooled width.
TAPS = {
    "resnet20": (32, [(32, 16), (32, 16), (16, 32), (8, 64)], 64),
    "resnet56a": (32, [(32, 16), (32, 16), (16, 32), (8, 64)], 64),
    "resnet32x4": (32, [(32, 32), (32, 64), (16, 128), (8, 256)], 256),
    "wrn_16_2": (32, [(32, 16), (32, 32), (16, 64), (8, 128)], 128),
    "resnet34_cifar": (32, [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)], 512),
    "resnet50_cifar": (32, [(32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)], 2048),
    "mobilenetv2_half": (32, [(16, 16), (16, 12), (8, 16), (4, 48), (2, 160)], 1280),
    "mobilenetv2_cifar": (32, [(32, 32), (32, 24), (16, 32), (8, 96), (4, 320)], 1280),
    "vgg8": (32, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)], 512),
    "vgg13": (32, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)], 512),
    "shufflenetv1": (32, [(32, 24), (16, 240), (8, 480), (4, 960)], 960),
    "shufflenetv2": (32, [(32, 24), (16, 116), (8, 232), (4, 464)], 1024),
    "resnet50": (224, [(112, 64), (56, 256), (28, 512), (14, 1024), (7, 2048)], 2048),
    "mobilenetv1": (224, [(112, 32), (56, 128), (28, 256), (14, 512), (7, 1024)], 1024),
    "mobilenetv2": (224, [(112, 32), (56, 24), (28, 32), (14, 96), (7, 320)], 1280),
}

BLOCKS = {
    "resnet20": 9,
    "resnet56": 27,
    "wrn_16_2": 6,
    "wrn_28_2": 12,
    "wrn_40_2": 18,
    "resnet34_cifar": 16,
    "resnet50": 16,
    "mobilenetv1": 13,
    "mobilenetv2": 17,
    "mobilenetv2_half": 17,
    "vgg8": 5,
    "vgg13": 10,
    "shufflenetv1": 16,
    "shufflenetv2": 16,
}


def init_shapes(module, size=32):
    """The shapes of a network's variables; nothing is computed."""
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), image)


@functools.cache
def shapes(name, size=32):
    """The shapes of a network's variables and of its outputs for two images."""
    module = models.create(name, 10)
    variables = init_shapes(module, size)
    return variables, jax.eval_shape(module.apply, variables, jnp.zeros((2, size, size, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMS)
def test_parameter_counts_are_the_published_ones(name):
    ten, *more = PARAMS[name]
    if ten:
        assert count_params(shapes(name)[0]) == ten
    for classes, expected in zip((100, 1000), more, strict=True):
        if expected:
            assert count_params(init_shapes(models.create(name, classes))) == expected


@pytest.mark.parametrize(
    ("depth", "widen", "ten", "hundred"),
    [(16, 4, 2_748_890, 2_772_020), (28, 4, 5_849_050, 5_872_180)],
)
def test_parameter_counts_of_wider_networks(depth, widen, ten, hundred):
    assert count_params(init_shapes(WideResNet(10, depth, widen))) == ten
    assert count_params(init_shapes(WideResNet(100, depth, widen))) == hundred


@pytest.mark.slow
@pytest.mark.parametrize("name", TAPS)
def test_taps_have_the_shapes_of_the_table(name):
    size, stages, pooled = TAPS[name]
    _, out = shapes(name, size)
    for i, (height, channels) in enumerate(stages):
        tap = f"stage{i}" if i else "stem"
        assert out.feats[tap].shape == (2, height, height, channels), tap
        if f"{tap}_pre" in out.feats:
            assert out.feats[f"{tap}_pre"].shape == out.feats[tap].shape
    assert f"stage{len(stages)}" not in out.feats
    assert out.feats["pooled"].shape == (2, pooled)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_returns_the_same_taps(name):
    variables, out = shapes(name)
    assert (out.logits.shape, out.logits.dtype) == ((2, 10), jnp.float32)
    stages = [x for x in out.feats if x.startswith("stage") and not x.endswith("_pre")]
    blocks = [x for x in out.feats if x.startswith("block")]
    assert set(stages) == {f"stage{i + 1}" for i in range(len(stages))} and len(stages) in (3, 4)
    assert set(blocks) == {f"block{i + 1}" for i in range(len(blocks))}
    # MobileNetV2's bottlenecks are linear, so nothing comes before an activation.
    twins = set() if name.startswith("mobilenetv2") else {f"{x}_pre" for x in stages}
    assert set(out.feats) == {"stem", "pooled", *stages, *blocks, *twins}
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_every_residual_block_is_tapped(name):
    _, out = shapes(name)
    assert sum(x.startswith("block") for x in out.feats) == BLOCKS[name]


HALF = ["resnet8", "wrn_16_1", "resnet18", "mobilenetv1", "mobilenetv2", "vgg8"]


@pytest.mark.parametrize("name", [*HALF, "shufflenetv1", "shufflenetv2"])
def test_half_precision_keeps_parameters_statistics_and_logits_in_float32(name):
    module = models.create(name, 10, dtype=jnp.bfloat16, bn_axis="batch")
    variables = init_shapes(module)
    image = jnp.zeros((2, 32, 32, 3))
    out = jax.eval_shape(module.apply, variables, image)  # no device axis in evaluation
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert out.logits.dtype == out.feats["pooled"].dtype == jnp.float32
    assert out.feats["stage2"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_training_uses_and_updates_the_statistics_of_the_batch():
    module = models.create("resnet8a", 10)
    image = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))

    @jax.jit
    def run(image):
        variables = module.init(jax.random.key(1), image)
        train, updates = module.apply(variables, image, train=True, mutable=["batch_stats"])
        return variables, train, updates, module.apply(variables, image)

    variables, train, updates, evaluation = run(image)
    assert float(jnp.abs(train.logits - evaluation.logits).max()) > 1e-3
    before, after = variables["batch_stats"], updates["batch_stats"]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(changed)) and len(jax.tree.leaves(changed)) == 2 * 7


def test_zero_padded_shortcut_adds_no_parameters_and_keeps_the_subsampled_image():
    block = models.resnet_cifar.BasicBlock(width=8, stride=2, shortcut="A")
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(1), x, False))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape), shapes)
    pre, post = jax.jit(lambda: block.apply(zeros, x, False))()
    assert set(shapes["params"]) == {"conv1", "bn1", "conv2", "bn2"}
    np.testing.assert_array_equal(pre[..., 2:6], x[:, ::2, ::2])
    assert not np.any(pre[..., :2]) and not np.any(pre[..., 6:])
    np.testing.assert_array_equal(post, np.maximum(pre, 0))


def test_vgg_pools_once_more_for_larger_images():
    module = models.create("vgg8", 10)
    image = jnp.zeros((1, 64, 64, 3))
    feats = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image)[0].feats)
    sizes = [feats[x].shape[1] for x in ("stem", "stage1", "stage2", "stage3", "stage4")]
    assert sizes == [64, 32, 16, 8, 4]


def test_channels_are_dealt_out():
    np.testing.assert_array_equal(shufflenet.shuffle(jnp.arange(6), 3), [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(shufflenet.shuffle(jnp.arange(6), 2), [0, 3, 1, 4, 2, 5])


@pytest.mark.parametrize("groups", [1, 3])
def test_gradient_of_a_grouped_convolution_is_that_of_the_sums(groups):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 3, 4, 6)), rng.standard_normal((2, 3, 4, 9))
    kernel = rng.standard_normal((1, 1, 6 // groups, 9))
    blocks = np.kron(np.eye(groups), np.ones((6 // groups, 9 // groups)))  # who sees whom
    full = blocks * np.tile(kernel[0, 0], (groups, 1))

    @jax.jit
    def value_and_gradients(x, kernel, g):
        y, pull = jax.vjp(shufflenet.pointwise, x, kernel)
        return y, *pull(g)

    y, d_x, d_kernel = value_and_gradients(*(a.astype(np.float32) for a in (x, kernel, g)))
    np.testing.assert_allclose(y, x @ full, atol=1e-5)
    np.testing.assert_allclose(d_x, g @ full.T, atol=1e-5)
    d_full = blocks * np.einsum("bhwc,bhwd->cd", x, g)
    expected = d_full.reshape(groups, 6 // groups, 9).sum(0)
    np.testing.assert_allclose(d_kernel[0, 0], expected, atol=1e-5)


def test_shufflenets_convolutions_start_as_pytorchs():
    x = jnp.zeros((1, 4, 4, 48))
    pointwise = shufflenet.PointwiseConv(96, groups=3)
    depthwise = shufflenet.DepthwiseConv(1)
    for module, inputs in ((pointwise, 16), (depthwise, 9)):
        kernel = jax.jit(module.init)(jax.random.key(0), x)["params"]["kernel"]
        bound = inputs**-0.5
        assert 0.95 * bound < float(jnp.abs(kernel).max()) <= bound
        assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "keys", "drops"),
    [
        ("mobilenetv2", True, True, True),
        ("mobilenetv2_cifar", True, True, True),
        ("mobilenetv2", True, False, False),
        ("mobilenetv2", False, True, False),
        ("mobilenetv2_half", True, True, False),
        ("resnet20", True, True, False),
    ],
)
def test_dropout_happens_in_training_with_keys_only(name, train, keys, drops):
    module = models.create(name, 10)
    image = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    rng = jax.random.split(jax.random.key(0), 2) if keys else None
    apply = jax.make_jaxpr(
        lambda v, rng: module.apply(v, image, train=train, rng=rng, mutable=["batch_stats"])
    )
    assert ("random_bits" in str(apply(variables, rng))) is drops


def test_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="'resnet_56'.*did you mean 'resnet56'"):
        models.create("resnet_56", 10)
