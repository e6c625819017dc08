"""What single methods promise beyond the table of test_methods.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atkd_jax import methods, models
from atkd_jax.methods import Context, Extras
from atkd_jax.methods.self_attention import attention_maps
from atkd_jax.types import Batch, ModelOut

KEY = jax.random.key(0)
CTX = Context(KEY)


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outs(seed, *shapes, classes=10):
    """An output with stages of the given (H, W, C), three examples."""
    feats = {f"stage{i + 1}": noise(seed + i, 3, *shape) for i, shape in enumerate(shapes)}
    return ModelOut(noise(seed, 3, classes), feats)


def labels(label):
    return Batch(None, jnp.asarray(label), None)


def loss_of(method, t, s, extras=None, batch=None):
    return method.loss(extras or Extras(), t, s, batch, CTX).loss


# at


def test_at_does_not_see_the_scale_of_features():
    at = methods.create("at")
    t, s = outs(0, (4, 4, 3)), outs(1, (4, 4, 5))
    scaled = ModelOut(s.logits, {"stage1": 100 * s.feats["stage1"]})
    np.testing.assert_allclose(loss_of(at, t, scaled), loss_of(at, t, s), rtol=1e-5)


def test_at_of_the_paper_is_half_the_distance_of_unit_maps():
    t, s = outs(0, (4, 4, 3)), outs(1, (4, 4, 5))
    maps = [np.square(out.feats["stage1"]).mean(-1).reshape(3, -1) for out in (t, s)]
    q_t, q_s = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in maps)
    expected = np.linalg.norm(q_s - q_t, axis=1).mean() / 2
    loss = loss_of(methods.create("at", variant="paper"), t, s)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_at_with_a_stage_that_the_student_lacks_says_so():
    at = methods.create("at", taps=("stage2",))
    with pytest.raises(ValueError, match="at: the student has no tap stage2; it has stage1"):
        at.init(KEY, outs(0, (4, 4, 3), (2, 2, 3)), outs(1, (4, 4, 3)), None)


# self_attention


@pytest.mark.parametrize("center", [False, True])
def test_attention_maps_are_scaled_cosines_per_head(center):
    feat, heads, scale = noise(2, 2, 3, 2, 8), 2, 5.0
    x = feat - feat.mean((1, 2), keepdims=True) if center else feat
    x = x.reshape(2, 6, heads, 4).transpose(0, 2, 1, 3)  # [B, heads, N, d]
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    expected = np.exp(scale * x @ x.transpose(0, 1, 3, 2))
    expected /= expected.sum(axis=-1, keepdims=True)
    maps = attention_maps(feat, heads, scale, (3, 2), center)
    np.testing.assert_allclose(maps, expected, rtol=1e-5)


def test_centered_attention_maps_ignore_what_all_positions_share():
    feat = noise(3, 2, 3, 2, 8)
    maps = attention_maps(feat, 2, 1.0, (3, 2))
    np.testing.assert_allclose(attention_maps(feat + noise(4, 8), 2, 1.0, (3, 2)), maps, rtol=1e-4)


@pytest.mark.parametrize("mean, tolerance", [(0, 1e-5), (1000, 2e-3)])
def test_attention_maps_of_layer_normalised_tokens_are_scaled_by_sqrt_d(mean, tolerance):
    feat = noise(3, 2, 3, 2, 8) + np.float32(mean)
    x = feat.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x.reshape(2, 6, 2, 4).transpose(0, 2, 1, 3)
    expected = np.exp(x @ x.transpose(0, 1, 3, 2) / 2)
    expected /= expected.sum(axis=-1, keepdims=True)
    maps = attention_maps(feat, 2, "sqrt_d", (3, 2), center=False)
    np.testing.assert_allclose(maps, expected, rtol=tolerance)


def test_self_attention_is_one_for_a_uniform_student_and_any_scale():
    t = outs(0, (8, 8, 4), (4, 4, 8))
    uniform = t._replace(feats={k: jnp.zeros_like(v) for k, v in t.feats.items()})
    for scale in (0.1, 1.0, 10.0):
        method = methods.create("self_attention", heads=2, scale=scale, balance=False)
        np.testing.assert_allclose(loss_of(method, t, uniform), 1.0, rtol=1e-4)


def test_self_attention_is_the_mean_over_levels_of_errors_relative_to_a_uniform_map():
    method = methods.create("self_attention", heads=2, max_size=2, scale=3.0, balance=False)
    t, s = outs(0, (8, 8, 4), (4, 4, 8)), outs(9, (8, 8, 6), (2, 2, 2))
    levels = []
    for stage in ("stage1", "stage2"):
        a_t, a_s = (attention_maps(o.feats[stage], 2, 3.0, (2, 2)) for o in (t, s))
        error = np.square(a_s - a_t).sum((1, 2, 3)) / np.square(a_t - 1 / 4).sum((1, 2, 3))
        levels.append(error.mean())
    np.testing.assert_allclose(loss_of(method, t, s), np.mean(levels), rtol=1e-4)


def test_self_attention_weighs_every_image_by_its_divergence_without_gradient():
    plain, balanced = (methods.create("self_attention", heads=2, balance=b) for b in (False, True))
    t, s = outs(0, (4, 4, 4)), outs(9, (4, 4, 4))
    parts = []
    for i in range(len(s.logits)):
        one_t, one_s = (jax.tree.map(lambda x, i=i: x[i : i + 1], o) for o in (t, s))
        parts.append(loss_of(methods.create("kd"), one_t, one_s) * loss_of(plain, one_t, one_s))
    np.testing.assert_allclose(loss_of(balanced, t, s), np.mean(parts), rtol=1e-4)
    grad = jax.grad(lambda z: loss_of(balanced, t, s._replace(logits=z)))(jnp.asarray(s.logits))
    assert not grad.any()


def test_self_attention_learns_nothing_from_an_image_without_differences():
    method = methods.create("self_attention", heads=2, balance=False)
    t, s = outs(0, (4, 4, 4)), outs(9, (4, 4, 4))
    feat = t.feats["stage1"].copy()
    feat[0] = 2.0
    flat = t._replace(feats={"stage1": feat})
    others = loss_of(method, *(o._replace(feats={"stage1": o.feats["stage1"][1:]}) for o in (t, s)))
    share = (len(feat) - 1) / len(feat)
    np.testing.assert_allclose(loss_of(method, flat, s), others * share, rtol=1e-5)


def test_self_attention_of_the_poster_sums_over_keys_and_stages_and_averages_the_rest():
    poster = dict(scale=10.0, center=False, relative=False, balance=False)
    method = methods.create("self_attention", heads=2, max_size=2, **poster)
    t, s = outs(0, (8, 8, 4), (4, 4, 8)), outs(9, (8, 8, 6), (2, 2, 2))
    expected = 0
    for stage in ("stage1", "stage2"):
        a_t, a_s = (attention_maps(o.feats[stage], 2, 10.0, (2, 2), center=False) for o in (t, s))
        expected += np.square(a_s - a_t).sum(-1).mean()
    np.testing.assert_allclose(loss_of(method, t, s), expected, rtol=1e-5)


def test_self_attention_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels of the student do not split into 4 heads"):
        methods.create("self_attention").init(KEY, outs(0, (2, 2, 8)), outs(1, (2, 2, 6)), None)


# kd and dkd


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_logit_methods_refuse_other_classes_and_no_temperature(name):
    with pytest.raises(ValueError, match=f"{name}: the teacher has 7 classes, the student 10"):
        methods.create(name).init(KEY, outs(0, classes=7), outs(0), None)
    with pytest.raises(ValueError, match=f"{name.upper()}.temperature 0.0 is not a number in"):
        methods.create(name, temperature=0.0)


def test_dkd_splits_the_divergence_of_kd():
    z_t, z_s, y = noise(4, 1, 10), noise(5, 1, 10), 3
    t, s = ModelOut(z_t, {}), ModelOut(z_s, {})
    unsure = 1 - float(jax.nn.softmax(z_t / 4)[0, y])
    dkd = methods.create("dkd", alpha=1.0, beta=unsure)
    expected = loss_of(methods.create("kd"), t, s)
    np.testing.assert_allclose(loss_of(dkd, t, s, batch=labels([y])), expected, rtol=1e-5)


@pytest.mark.slow
def test_dkd_is_finite_for_a_teacher_that_is_certain():
    t, s = ModelOut(1e4 * jnp.eye(3), {}), ModelOut(-1e4 * jnp.eye(3), {})
    dkd = methods.create("dkd", temperature=1.0)

    def loss(z):
        return loss_of(dkd, t, ModelOut(z, {}), batch=labels([0, 1, 2]))

    value, grad = jax.value_and_grad(loss)(s.logits)
    assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_dkd_refuses_class_probabilities():
    with pytest.raises(ValueError, match="dkd: needs one class number per example"):
        loss_of(methods.create("dkd"), outs(0), outs(1), batch=labels(np.full((3, 10), 0.1)))


# vid


def test_vid_starts_at_half_the_log_of_its_variance_per_stage():
    zero = ModelOut(jnp.zeros((3, 10)), {f"stage{i}": jnp.zeros((3, 2, 2, 4)) for i in (1, 2)})
    vid = methods.create("vid")
    extras = vid.init(KEY, zero, zero, None)
    np.testing.assert_allclose(loss_of(vid, zero, zero, extras), np.log(5), rtol=1e-6)


# fitnet


@pytest.mark.slow
@pytest.mark.parametrize(
    "student, kernel",
    [
        ((8, 8, 4), (3, 3, 4, 6)),
        ((2, 2, 4), (4, 4, 4, 6)),
        ((4, 4, 4), (1, 1, 4, 6)),
        ((6, 5, 4), (3, 2, 4, 6)),
    ],
    ids=["down", "up", "equal", "valid"],
)
def test_fitnet_regresses_to_the_teachers_shape_and_carries_its_statistics(student, kernel):
    fitnet = methods.create("fitnet", tap="stage1")
    t, s = outs(0, (4, 4, 6)), outs(1, student)
    extras = fitnet.init(KEY, t, s, None)
    conv = extras.params["conv"]["kernel"]
    assert conv.shape == kernel
    # PyTorch's, which counts the outputs of a transposed convolution.
    bound = np.prod([4, 4, 6] if kernel[0] == 4 else kernel[:3]) ** -0.5
    assert 0.8 * bound < np.abs(conv).max() <= bound
    loss = jax.jit(lambda extras: fitnet.loss(extras, t, s, None, CTX))
    one = loss(extras)
    two = loss(Extras(extras.params, one.state))
    # A tenth of the way from zero to the batch's mean, and a tenth of the rest.
    np.testing.assert_allclose(two.state["bn"]["mean"], 1.9 * one.state["bn"]["mean"], rtol=1e-5)
    assert np.all(one.state["bn"]["mean"] != 0)


@pytest.mark.parametrize("use_relu, lowest", [(True, 0.0), (False, -1.0)])
def test_fitnet_without_relu_reaches_below_zero(use_relu, lowest):
    fitnet = methods.create("fitnet", tap="stage1", use_relu=use_relu)
    t, s = outs(0, (4, 4, 6)), outs(1, (4, 4, 4))
    params, state = fitnet.init(KEY, t, s, None)
    params = params | {"bn": {"scale": jnp.zeros(6), "bias": -jnp.ones(6)}}
    expected = np.square(lowest - t.feats["stage1"]).mean()
    np.testing.assert_allclose(loss_of(fitnet, t, s, Extras(params, state)), expected, rtol=1e-5)


def test_fitnet_refuses_a_student_map_that_is_too_small():
    with pytest.raises(ValueError, match="student's map is 3x3, the teacher's 8x8"):
        methods.create("fitnet", tap="stage1").init(
            KEY, outs(0, (8, 8, 6)), outs(1, (3, 3, 4)), None
        )


# fsp, nst, and the relational methods


def test_fsp_begins_at_the_stem():
    t, s = (outs(i, (8, 8, 4), (8, 8, 4), (4, 4, 8)) for i in (0, 9))
    names = ("stem", "stage1", "stage2")
    t, s = (ModelOut(o.logits, dict(zip(names, o.feats.values(), strict=True))) for o in (t, s))
    expected = loss_of(methods.create("fsp", taps=names), t, s)
    np.testing.assert_allclose(loss_of(methods.create("fsp"), t, s), expected, rtol=1e-6)
    assert expected > 0


def test_fsp_refuses_networks_of_different_width():
    t, s = (outs(0, (4, 4, c), (2, 2, 2 * c)) for c in (4, 6))
    with pytest.raises(ValueError, match=r"teacher has \(4, 8\) channels, the student \(6, 12\)"):
        methods.create("fsp", taps=("stage1", "stage2")).init(KEY, t, s, None)


def test_nst_is_the_same_by_channels_and_by_positions():
    """For few positions and many channels it compares [N, N] matrices: both ways are one sum."""
    t, s = noise(6, 3, 2, 2, 7), noise(7, 3, 2, 2, 5)
    unit_t, unit_s = (
        f.reshape(3, 4, -1) / np.linalg.norm(f.reshape(3, 4, -1), axis=1, keepdims=True)
        for f in (t, s)
    )

    def kernel(a, b):
        return np.square(np.einsum("bnc,bnd->bcd", a, b)).mean()

    expected = kernel(unit_t, unit_t) + kernel(unit_s, unit_s) - 2 * kernel(unit_t, unit_s)
    loss = loss_of(
        methods.create("nst"), *(ModelOut(jnp.zeros((3, 10)), {"stage1": f}) for f in (t, s))
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt"])
def test_relational_methods_ask_for_the_whole_batch(name):
    assert methods.METHODS[name].needs_global_batch


@pytest.mark.parametrize("name", ["cc", "rkd"])
def test_a_single_example_has_no_relations(name):
    one = ModelOut(jnp.zeros((1, 10)), {"pooled": jnp.zeros((1, 4))})
    with pytest.raises(ValueError, match=f"{name}: compares examples.*batch_size must exceed 1"):
        methods.create(name).init(KEY, one, one, None)


def test_rkd_does_not_see_the_scale_of_features():
    t, s = (ModelOut(jnp.zeros((5, 10)), {"pooled": noise(i, 5, 4)}) for i in (8, 9))
    scaled = ModelOut(s.logits, {"pooled": 3 * s.feats["pooled"]})
    rkd = methods.create("rkd")
    np.testing.assert_allclose(loss_of(rkd, t, scaled), loss_of(rkd, t, s), rtol=1e-5)


# taps


@pytest.mark.parametrize("name", ["at", "nst", "vid", "fsp", "fitnet", "self_attention"])
def test_the_features_that_a_message_lists_are_accepted(name):
    network = models.create("resnet8", 10)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    out = jax.eval_shape(network.apply, variables, image)

    def init(*taps):
        fields = {"tap": taps[0]} if name == "fitnet" else {"taps": taps}
        method = methods.create(name, **fields)
        return jax.eval_shape(lambda key: method.init(key, out, out, None), jax.random.key(0))

    for wrong in ("nothing", "pooled"):
        with pytest.raises(ValueError, match=f"^{name}: .*{wrong}") as told:
            init(wrong)
        listed = re.split(r"it has |take one of ", str(told.value))[1].split(", ")
        assert "stage1" in listed and "pooled" not in listed
        for tap in listed:
            init(tap, listed[0])
