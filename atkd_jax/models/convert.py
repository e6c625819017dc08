"""Published PyTorch weights -> Flax variables, by name.

Supported names:
  CIFAR ResNets: akamaster/pytorch_resnet_cifar10 (option A: `resnet20a`, ...), RepDistiller (CRD's
    benchmark), chenyaofo/pytorch-cifar-models.
  WRN, VGG, ShuffleNet: RepDistiller.
  ResNet-18/34/50: torchvision, timm; with the CIFAR stem RepDistiller.
  MobileNetV2: torchvision, timm; CIFAR chenyaofo/pytorch-cifar-models; half-width RepDistiller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from atkd_jax.errors import UserError
from atkd_jax.models import MODELS
from atkd_jax.models.mobilenetv2 import GROUPS
from atkd_jax.models.plain_pickle import shown
from atkd_jax.models.torch_file import load_torch
from atkd_jax.types import PyTree

__all__ = ["load_torch", "to_flax"]

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch norms, of AveragedModel
# Words that wrappers of a network, or of a part of it, add to names: DataParallel and
# DistributedDataParallel, torch.compile, FSDP, checkpoint_wrapper.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def to_flax(name: str, tensors: dict[str, np.ndarray], template_variables: PyTree) -> PyTree:
    """Variables of the network `name` with the values of a PyTorch state dict.

    Args:
      name: a key of `MODELS`.
      tensors: from `load_torch`. A prefix that all names share ("model."), WRAPPERS anywhere, and
        COUNTERS are ignored.
      template_variables: the result of `init`; only its structure and shapes are used, so that of
        `jax.eval_shape` is enough.

    Returns:
      The same tree with float32 NumPy arrays.

    Raises:
      UserError: the network has no known PyTorch names, tensors are missing or left over, or shapes
        or the number of classes differ.
    """
    torch_names = _naming(name)
    bare = _unwrapped(name, tensors)
    template = flatten_dict(template_variables)
    names = {}
    for path in template:
        _, *modules, layer, leaf = path
        stage, block = re.findall(r"\d+", modules[0]) if modules else (0, 0)
        names[path] = [f"{x}.{LEAVES[leaf]}" for x in torch_names(int(stage), int(block), layer)]
    sources = {path: next((x for x in xs if x in bare), xs[0]) for path, xs in names.items()}
    whole = " and ".join(map(shown, _parts_with(list(names.values()), set(tensors))))
    _check_names(name, set(sources.values()), set(bare), whole)
    head = ("params", "fc", "kernel")
    found, wanted = bare[sources[head]].shape, template[head].shape[1]
    if len(found) == 2 and found[0] != wanted:
        classes = found[0]
        raise UserError(f"{name}: the weights have {classes} classes, the data set has {wanted}")
    return unflatten_dict(
        {
            path: _array(name, source, bare[source], template[path].shape)
            for path, source in sources.items()
        }
    )


def _unwrapped(name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under their names in the unwrapped network."""
    paths = {
        key: [part for part in key.split(".") if part not in WRAPPERS]
        for key in tensors
        if not key.endswith(COUNTERS)
    }
    # No network consists of a single layer, so first words that all names share are a prefix.
    shared = len(os.path.commonprefix(list(paths.values())))
    shared = max(0, min([shared, *(len(path) - 2 for path in paths.values())]))
    unwrapped: dict[str, np.ndarray] = {}
    for key, path in paths.items():
        short = ".".join(path[shared:])
        if short in unwrapped:
            raise UserError(
                f"{name}: the weights hold {shown(short)} twice, wrapped and not ({shown(key)});"
                " teacher.weights_key chooses the part of the file that is read"
            )
        unwrapped[short] = tensors[key]
    return unwrapped


def _check_names(name: str, wanted: set[str], found: set[str], whole: str) -> None:
    missing, left_over = sorted(wanted - found), sorted(found - wanted)
    if missing:
        hint = f"; they hold {_list(left_over)}" if left_over else ""
        if f"{name}a" in MODELS and all("downsample" in x for x in missing):
            hint = f"; without them it is a {name}a"
        elif whole:
            hint = f"; all of them are under {whole}: choose with teacher.weights_key"
        raise UserError(f"{name}: the weights lack {_list(missing)}{hint}")
    if left_over:
        raise UserError(f"{name}: the weights also hold {_list(left_over)}; another network's?")


def _parts_with(wanted: list[list[str]], found: set[str]) -> list[str]:
    """Prefixes of names under which everything wanted exists (one name of each list)."""
    starts = {x.removesuffix(last) for last in wanted[0] for x in found if x.endswith(f".{last}")}
    return sorted(
        start.removesuffix(".")
        for start in starts
        if all(any(start + x in found for x in choice) for choice in wanted)
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(shown, names[:5])) + more


def _array(name: str, source: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(
            f"{name}: {source} holds {tensor.dtype} numbers, not floating point; quantised weights"
            " cannot be read"
        )
    # OIHW -> HWIO, (out, in) -> (in, out). A depthwise (C, 1, 3, 3) becomes (3, 3, 1, C) likewise.
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim))
    view = tensor.transpose(order)
    if view.shape != shape:
        raise UserError(
            f"{name}: {source} has shape {tensor.shape}, which is {view.shape} in Flax's order; "
            f"{shape} was expected"
        )
    return view.astype(np.float32)


# PyTorch's names of a layer: (stage or group, block, layer) -> alternatives. Stage and block count
# from 1; 0, 0 is a layer outside them.


def _naming(name: str) -> Callable[[int, int, str], tuple[str, ...]]:
    for prefix, naming in NAMINGS.items():
        if name.startswith(prefix):
            return naming
    raise UserError(f"{name}: no published PyTorch weights are known, only {', '.join(NAMINGS)}")


def _resnet(stage: int, block: int, layer: str) -> tuple[str, ...]:
    if not stage:
        return {"stem_conv": ("conv1",), "stem_bn": ("bn1",), "fc": ("fc", "linear")}[layer]
    shortcut = {"shortcut_conv": 0, "shortcut_bn": 1}
    names: tuple[str, ...] = (layer,)
    if layer in shortcut:
        names = (f"downsample.{shortcut[layer]}", f"shortcut.{shortcut[layer]}")
    return tuple(f"layer{stage}.{block - 1}.{x}" for x in names)


def _wrn(stage: int, block: int, layer: str) -> tuple[str, ...]:
    if not stage:
        return ({"stem_conv": "conv1", "final_bn": "bn1", "fc": "fc"}[layer],)
    torch_layer = "convShortcut" if layer == "shortcut_conv" else layer
    return (f"block{stage}.layer.{block - 1}.{torch_layer}",)


def _mobilenetv2(group: int, block: int, layer: str) -> tuple[str, ...]:
    if not group:
        return {
            "stem_conv": ("features.0.0", "conv_stem"),
            "stem_bn": ("features.0.1", "bn1"),
            "head_conv": ("features.18.0", "conv_head"),
            "head_bn": ("features.18.1", "bn2"),
            "fc": ("classifier.1", "classifier"),
        }[layer]
    index = sum(n for _, _, n in GROUPS[: group - 1]) + block
    torchvision, timm = {
        "expand_conv": ("0.0", "conv_pw"),
        "expand_bn": ("0.1", "bn1"),
        "depthwise_conv": ("1.0", "conv_dw"),
        "depthwise_bn": ("1.1", "bn2"),
        "project_conv": ("2", "conv_pwl"),
        "project_bn": ("3", "bn3"),
    }[layer]
    if group == 1:  # without expansion the others move up
        torchvision, timm = {
            "depthwise_conv": ("0.0", "conv_dw"),
            "depthwise_bn": ("0.1", "bn1"),
            "project_conv": ("1", "conv_pw"),
            "project_bn": ("2", "bn2"),
        }[layer]
    return f"features.{index}.conv.{torchvision}", f"blocks.{group - 1}.{block - 1}.{timm}"


def _mobilenetv2_half(group: int, block: int, layer: str) -> tuple[str, ...]:
    if not group:
        return (
            {
                "stem_conv": "conv1.0",
                "stem_bn": "conv1.1",
                "head_conv": "conv2.0",
                "head_bn": "conv2.1",
                "fc": "classifier.0",
            }[layer],
        )
    position = {
        "expand_conv": 0,
        "expand_bn": 1,
        "depthwise_conv": 3,
        "depthwise_bn": 4,
        "project_conv": 6,
        "project_bn": 7,
    }[layer]
    return (f"blocks.{group - 1}.{block - 1}.conv.{position}",)


def _vgg(group: int, block: int, layer: str) -> tuple[str, ...]:
    if not block:
        return ("classifier",)
    return (f"block{group}.{3 * (block - 1) + ('conv', 'bn').index(layer)}",)


def _shufflenetv1(stage: int, block: int, layer: str) -> tuple[str, ...]:
    if stage:
        return (f"layer{stage}.{block - 1}.{layer}",)
    return (
        {
            "stem_conv": "conv1",
            "stem_bn": "bn1",
            "head_conv": "conv2",
            "head_bn": "bn2",
            "fc": "linear",
        }[layer],
    )


def _shufflenetv2(stage: int, block: int, layer: str) -> tuple[str, ...]:
    if layer.startswith("left_"):
        layer = layer.removeprefix("left_")
    elif block == 1:  # the left branch is numbered first
        layer = f"{layer[:-1]}{int(layer[-1]) + 2}"
    return _shufflenetv1(stage, block, layer)


NAMINGS = {
    "resnet": _resnet,
    "wrn": _wrn,
    "mobilenetv2_half": _mobilenetv2_half,
    "mobilenetv2": _mobilenetv2,
    "vgg": _vgg,
    "shufflenetv1": _shufflenetv1,
    "shufflenetv2": _shufflenetv2,
}
