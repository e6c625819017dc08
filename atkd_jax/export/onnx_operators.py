"""ONNX operators for the primitives of our networks' jaxprs: `OPERATORS`.

Each is called with the graph, the equation and its inputs, adds operators to the graph, and returns
the name of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from jax.extend.core import JaxprEqn

from atkd_jax.errors import UserError

Value = np.ndarray | str  # a constant, or the name of an operator's output


class Graph(Protocol):
    """The part of `onnx.Graph` that operators use."""

    onnx: ModuleType

    def node(self, operator: str, *inputs: Value, **attributes: Any) -> str: ...


def stored(ndim: int) -> tuple[int, ...]:
    """JAX's axes in the order in which ONNX stores them."""
    return (0, *range(3, ndim), 1, 2) if ndim > 3 else tuple(range(ndim))


def _in_order(values: Sequence[int]) -> np.ndarray:
    """Reorders integers, one per axis of a JAX array, to ONNX's axes."""
    return np.array([values[axis] for axis in stored(len(values))], np.int64)


def _beside(x: Value) -> Value:
    """Transposes a constant that is combined with an image."""
    return x.transpose(stored(x.ndim)) if isinstance(x, np.ndarray) else x


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UserError(f"the ONNX export knows no {what}; export to tflite")


def _elementwise(operator: str) -> Callable[..., str]:
    return lambda graph, eqn, a, b: graph.node(operator, _beside(a), _beside(b))


def _sub(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> str:
    if isinstance(b, np.ndarray):  # only sums are folded into a convolution before them
        return graph.node("Add", a, _beside(-b))
    return graph.node("Sub", _beside(a), b)


def _max(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> str:
    if isinstance(b, np.ndarray) and not b.any():
        return graph.node("Relu", a)
    return graph.node("Max", _beside(a), _beside(b))


def _min(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> str:
    if isinstance(b, np.ndarray) and not b.ndim:
        return graph.node("Clip", a, "", b)
    return graph.node("Min", _beside(a), _beside(b))


def _cast(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    to = graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
    return graph.node("Cast", x, to=to)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [int(low) for low, _ in padding] + [int(high) for _, high in padding]


def _conv(graph: Graph, eqn: JaxprEqn, x: str, kernel: Value) -> str:
    params, layout = eqn.params, eqn.params["dimension_numbers"]
    _require(isinstance(kernel, np.ndarray), "convolution with a computed kernel")
    _require(layout.lhs_spec == layout.out_spec == stored(4), "convolution that is not NHWC")
    _require(set(params["lhs_dilation"]) == {1}, "transposed convolution")
    return graph.node(
        "Conv",
        x,
        np.transpose(kernel, layout.rhs_spec),
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
        pads=_pads(params["padding"]),
    )


def _pool(graph: Graph, operator: str, params: dict, x: str, **more: Any) -> str:
    window, strides = params["window_dimensions"], params["window_strides"]
    dilations = {*params["base_dilation"], *params["window_dilation"]}
    _require(len(window) == 4 and window[0] == window[3] == 1, "pooling over channels")
    _require(dilations == {1}, "dilated pooling")
    pads = _pads(params["padding"][1:3])
    return graph.node(
        operator, x, kernel_shape=window[1:3], strides=strides[1:3], pads=pads, **more
    )


def _max_pool(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    return _pool(graph, "MaxPool", eqn.params, x)


def _sum_pool(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    mean = _pool(graph, "AveragePool", eqn.params, x, count_include_pad=1)
    return graph.node("Mul", mean, np.asarray(math.prod(eqn.params["window_dimensions"]), "f4"))


def _pad(graph: Graph, eqn: JaxprEqn, x: str, value: np.ndarray) -> str:
    low, high, inside = zip(*eqn.params["padding_config"], strict=True)
    _require(not any(inside), "padding between pixels")
    return graph.node("Pad", x, np.concatenate([_in_order(low), _in_order(high)]), value)


def _slice(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    start, stop = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(start)
    axes = np.arange(len(start))
    return graph.node("Slice", x, _in_order(start), _in_order(stop), axes, _in_order(steps))


def _concatenate(graph: Graph, eqn: JaxprEqn, *parts: Value) -> str:
    aval: Any = eqn.outvars[0].aval  # a ShapedArray
    axis = stored(aval.ndim).index(eqn.params["dimension"])
    return graph.node("Concat", *map(_beside, parts), axis=axis)


def _reshape(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """Reshapes channels only: [1, H, W, C] -> [1, H, W, G, C / G], or back."""
    avals: list[Any] = [eqn.invars[0].aval, eqn.outvars[0].aval]  # ShapedArrays
    before, after = (aval.shape for aval in avals)
    _require(min(len(before), len(after)) > 3 and before[:3] == after[:3], "reshape of an image")
    return graph.node("Reshape", x, _in_order(after))


def _transpose(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    order = eqn.params["permutation"]
    after = stored(len(order))
    return graph.node("Transpose", x, perm=[after.index(order[axis]) for axis in after])


def _sum(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    _require(eqn.params["axes"] == (1, 2), "sum but that of an image's pixels")
    return graph.node("ReduceSum", x, np.array([2, 3]), keepdims=0)


def _dot(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> str:
    _require(
        eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ())), "product but a linear layer's"
    )
    return graph.node("MatMul", a, b)


OPERATORS: dict[str, Callable[..., str]] = {
    "add": _elementwise("Add"),
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _cast,
    "div": _elementwise("Div"),
    "dot_general": _dot,
    "max": _max,
    "min": _min,
    "mul": _elementwise("Mul"),
    "pad": _pad,
    "reduce_sum": _sum,
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
    "reshape": _reshape,
    "slice": _slice,
    "sub": _sub,
    "transpose": _transpose,
}
