"""Every network converts to every format, and the files say what JAX says."""

import os
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from atkd_jax import models
from atkd_jax.export import onnx, tflite, trained
from atkd_jax.models.network import Network
from atkd_jax.models.resnet import Bottleneck, ResNet
from atkd_jax.models.resnet_cifar import BasicBlock
from atkd_jax.nn.platform import portable

pytest.importorskip("ai_edge_litert")
pytest.importorskip("onnxruntime")

IMAGENET = re.compile(r"resnet(18|34|50)$|mobilenetv[12](_x.*)?$")

# One of each family, with every layer that its other members have, some with fewer blocks; what
# takes 224x224 images is shown 64x64 ones. ATKD_ALL_NETWORKS=1 is all of them as they are.
FAMILIES = {
    "resnet8": (models.MODELS["resnet8"], 32),
    "resnet8a": (models.MODELS["resnet8a"], 32),
    "wrn_16_1": (models.MODELS["wrn_16_1"], 32),
    "resnet18": (partial(ResNet, blocks=(1, 1, 1, 1), block=BasicBlock), 64),
    "resnet50": (partial(ResNet, blocks=(1, 1, 1, 1), block=Bottleneck), 64),
    "resnet50_cifar": (
        partial(ResNet, blocks=(1, 1, 0, 0), block=Bottleneck, small_stem=True), 32
    ),
    "vgg8": (models.MODELS["vgg8"], 32),
    "shufflenetv1": (models.MODELS["shufflenetv1"], 32),
    "shufflenetv2": (models.MODELS["shufflenetv2"], 32),
    "mobilenetv1": (models.MODELS["mobilenetv1"], 64),
    "mobilenetv2_x0.35": (models.MODELS["mobilenetv2_x0.35"], 64),
    "mobilenetv2_cifar_x0.5": (models.MODELS["mobilenetv2_cifar_x0.5"], 32),
    "mobilenetv2_half": (models.MODELS["mobilenetv2_half"], 32),
}  # fmt: skip
ALL = {name: (models.MODELS[name], 224 if IMAGENET.match(name) else 32) for name in models.MODELS}
NETWORKS = ALL if os.environ.get("ATKD_ALL_NETWORKS") else FAMILIES


def random_variables(module, size):
    """Weights that keep the signal's size, and batch norms that do something."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
            case "scale" | "var":
                return rng.uniform(0.5, 1.5, leaf.shape)
            case _:
                return rng.normal(0, 0.1, leaf.shape)

    image = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda x: x.astype(np.float32), drawn)


def pictures(num, size):
    """Smooth noise: some colours are brighter, some parts too."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (num, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return (coarse * rng.uniform(0.3, 1, (num, 1, 1, 3))).astype(np.uint8)


def lite(content):
    """A TFLite file's function for a batch of images, its operators, its input and its output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    operators = [op["op_name"] for op in interpreter._get_ops_details()]
    interpreter.allocate_tensors()
    (entry,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()

    def one(image):
        interpreter.set_tensor(entry["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(out["index"])[0]

    return lambda images: np.stack([one(x) for x in images]), operators, entry, out


def error(ours, expected):
    return np.max(np.abs(ours - expected)) / np.ptp(expected)


def similarity(ours, expected):
    """Cosine of what distinguishes images and classes."""
    a, b = ((x - x.mean()).ravel() for x in (ours, expected))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network, its function for devices, images and the logits of the network of the training."""
    constructor, size = NETWORKS[request.param]
    network = Network(constructor(num_classes=10), (0.5, 0.45, 0.4), (0.25, 0.24, 0.26))
    variables = random_variables(network.module, size)
    images = pictures(4, size)
    expected = jax.jit(network.apply)(variables, images / np.float32(255)).logits
    return network, trained.serving(network, variables), images, np.asarray(expected)


def depthwise_convolutions(network):
    """How many a network has: one for each (3, 3, 1, C) kernel."""
    size = 32
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return sum(x.shape[:3] == (3, 3, 1) for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.slow
def test_tflite_says_what_jax_says(case):
    network, serve, images, expected = case
    run, operators, entry, out = lite(tflite.convert(serve, images.shape[1:], images))
    assert error(run(images), expected) < 1e-5
    assert (entry["dtype"], out["dtype"]) == (np.uint8, np.float32)
    # A dynamic batch would be -1 here; some versions of the converter fail on it.
    assert list(entry["shape_signature"]) == [1, *images.shape[1:]]
    assert operators.count("DEPTHWISE_CONV_2D") == depthwise_convolutions(network)
    assert not {"IF", "WHILE", "RSQRT"} & set(operators)  # no branch, and batch norms are folded


@pytest.mark.slow
def test_tflite_int8_says_nearly_what_jax_says(case):
    _, serve, images, expected = case
    content = tflite.convert(serve, images.shape[1:], images, "int8")
    run, operators, entry, out = lite(content)
    assert similarity(run(images), expected) > 0.95
    assert (entry["dtype"], out["dtype"]) == (np.uint8, np.float32)
    assert operators.count("DEQUANTIZE") == 1  # everything but the answer is int8


@pytest.mark.slow
def test_onnx_says_what_jax_says(case):
    import onnxruntime

    _, serve, images, expected = case
    content = onnx.convert(serve, images.shape[1:])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.shape, entry.type) == ([1, *images.shape[1:]], "tensor(uint8)")
    ours = np.concatenate([session.run(["logits"], {"image": x[None]})[0] for x in images])
    assert error(ours, expected) < 1e-5


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_no_network_has_what_converters_break_on(name):
    """Padding inside of a max-pool breaks int8 TFLite silently, exact GELU crashes its converter.

    (Two other breakages, a pooling's positional arguments and a dynamic batch, are ruled out by
    converting jaxprs and by `serving`, whose batch is one.)
    """
    module = models.create(name, 10)
    image = jax.ShapeDtypeStruct((1, *ALL[name][1:] * 2, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    with portable():
        found = list(equations(jax.make_jaxpr(module.apply)(variables, image).jaxpr))
    assert not {"erf", "erfc", "cond", "scan", "while"} & {eqn.primitive.name for eqn in found}
    pools = [eqn for eqn in found if eqn.primitive.name == "reduce_window_max"]
    assert not any(low or high for eqn in pools for low, high in eqn.params["padding"])


def test_calibration_images_of_another_shape_are_refused():
    def never(image):
        raise AssertionError

    with pytest.raises(ValueError, match=r"uint8 \(16, 16, 3\), the network takes uint8 \(8, 8, 3"):
        tflite.convert(never, (8, 8, 3), pictures(2, 16), "int8")


def test_a_primitive_without_an_onnx_operator_is_named():
    with pytest.raises(ValueError, match="no ONNX operator is known here for 'erf'"):
        onnx.convert(lambda x: jax.lax.erf(x.astype(jnp.float32)), (8, 8, 3))
