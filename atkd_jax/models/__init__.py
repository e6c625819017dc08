"""The networks: `MODELS` names them, `create` makes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from atkd_jax.errors import check_known
from atkd_jax.models.mobilenetv1 import MobileNetV1
from atkd_jax.models.mobilenetv2 import MobileNetV2, MobileNetV2Cifar, MobileNetV2Half
from atkd_jax.models.resnet import Bottleneck, ResNet
from atkd_jax.models.resnet_cifar import BasicBlock, ResNetCifar
from atkd_jax.models.shufflenet import ShuffleNet, V1Block, V2Block
from atkd_jax.models.vgg import VGG
from atkd_jax.models.wrn import WideResNet

# The CIFAR ResNets have shortcuts of option B (1x1 convolutions); with the suffix `a`, of option A
# (zero padding). resnet18, 34, 50, mobilenetv1 and mobilenetv2 are for ImageNet.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(ResNetCifar, depth=8),
    "resnet14": partial(ResNetCifar, depth=14),
    "resnet20": partial(ResNetCifar, depth=20),
    "resnet32": partial(ResNetCifar, depth=32),
    "resnet44": partial(ResNetCifar, depth=44),
    "resnet56": partial(ResNetCifar, depth=56),
    "resnet110": partial(ResNetCifar, depth=110),
    "resnet8a": partial(ResNetCifar, depth=8, shortcut="A"),
    "resnet14a": partial(ResNetCifar, depth=14, shortcut="A"),
    "resnet20a": partial(ResNetCifar, depth=20, shortcut="A"),
    "resnet32a": partial(ResNetCifar, depth=32, shortcut="A"),
    "resnet44a": partial(ResNetCifar, depth=44, shortcut="A"),
    "resnet56a": partial(ResNetCifar, depth=56, shortcut="A"),
    "resnet110a": partial(ResNetCifar, depth=110, shortcut="A"),
    "resnet8x4": partial(ResNetCifar, depth=8, widths=(32, 64, 128, 256)),
    "resnet32x4": partial(ResNetCifar, depth=32, widths=(32, 64, 128, 256)),
    "wrn_16_1": partial(WideResNet, depth=16, widen=1),
    "wrn_16_2": partial(WideResNet, depth=16, widen=2),
    "wrn_28_2": partial(WideResNet, depth=28, widen=2),
    "wrn_40_1": partial(WideResNet, depth=40, widen=1),
    "wrn_40_2": partial(WideResNet, depth=40, widen=2),
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), block=Bottleneck),
    "resnet18_cifar": partial(ResNet, blocks=(2, 2, 2, 2), block=BasicBlock, small_stem=True),
    "resnet34_cifar": partial(ResNet, blocks=(3, 4, 6, 3), block=BasicBlock, small_stem=True),
    "resnet50_cifar": partial(ResNet, blocks=(3, 4, 6, 3), block=Bottleneck, small_stem=True),
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
    "mobilenetv2_x0.35": partial(MobileNetV2, width=0.35),
    "mobilenetv2_x0.5": partial(MobileNetV2, width=0.5),
    "mobilenetv2_x0.75": partial(MobileNetV2, width=0.75),
    "mobilenetv2_x1.4": partial(MobileNetV2, width=1.4),
    "mobilenetv2_cifar": MobileNetV2Cifar,
    "mobilenetv2_cifar_x0.5": partial(MobileNetV2Cifar, width=0.5),
    "mobilenetv2_cifar_x0.75": partial(MobileNetV2Cifar, width=0.75),
    "mobilenetv2_cifar_x1.4": partial(MobileNetV2Cifar, width=1.4),
    "mobilenetv2_half": MobileNetV2Half,
    "vgg8": partial(VGG, convs=(1, 1, 1, 1, 1)),
    "vgg13": partial(VGG, convs=(2, 2, 2, 2, 2)),
    "shufflenetv1": partial(ShuffleNet, block=V1Block, widths=(240, 480, 960)),
    "shufflenetv2": partial(ShuffleNet, block=V2Block, widths=(116, 232, 464), head=1024),
}


def create(
    name: str, num_classes: int, *, dtype: DTypeLike = jnp.float32, bn_axis: str | None = None
) -> nn.Module:
    """The network called `name`, as a Flax module without parameters.

    All have the same signature, `apply(variables, image, train=False, rng=None) -> ModelOut`:
      image: [B, H, W, 3] float, normalised.
      train: batch norm uses and updates the batch's statistics (`mutable=["batch_stats"]`).
      rng: [B] typed keys, one per example, for networks with dropout; None disables it. With a key
        per example, dropout does not depend on how a batch is split.

    Args:
      name: a key of `MODELS`.
      num_classes: K of the logits.
      dtype: compute dtype; parameters, batch statistics and logits are float32.
      bn_axis: the device axis over which batch statistics are averaged in training.

    Raises:
      UserError: there is no network of that name.
    """
    check_known("model", name, MODELS)
    return MODELS[name](num_classes=num_classes, dtype=dtype, bn_axis=bn_axis)
