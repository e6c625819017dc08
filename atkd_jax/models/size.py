"""Network size: parameters, and multiply-accumulates per image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn

from atkd_jax.types import PyTree


def count_params(variables: PyTree) -> int:
    """The number of values in `variables["params"]`, or in a tree of parameters.

    Batch statistics do not count. Leaves may be `jax.ShapeDtypeStruct`s.
    """
    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables.get("params", variables)))


def count_macs(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image in evaluation.

    Counted as in papers: without batch norm, activations, additions or pooling. Nothing is computed
    or compiled.

    Args:
      module: a network from `models.create`.
      image_shape: (H, W, 3).
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return _macs(jax.make_jaxpr(module.apply)(variables, image).jaxpr)


def _macs(jaxpr: Any) -> int:
    return sum(_equation_macs(eqn) for eqn in jaxpr.eqns)


def _equation_macs(eqn: Any) -> int:
    inner = [_macs(jaxpr) for jaxpr in _inner_jaxprs(eqn.params)]
    match eqn.primitive.name:
        case "conv_general_dilated":  # every output is a sum over one filter
            kernel = eqn.invars[1].aval.shape
            filters = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // filters
        case "dot_general":  # every output is a sum over the contracted axes
            (contracted, _), _ = eqn.params["dimension_numbers"]
            a = eqn.invars[0].aval.shape
            return math.prod(eqn.outvars[0].aval.shape) * math.prod(a[i] for i in contracted)
        case "cond":  # one branch runs; on CPU it may be a native call, which has no operations
            return max(inner)
        case "scan":
            return eqn.params["length"] * sum(inner)
        case _:
            return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "jaxpr"):  # closed
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item
