"""Converts a jaxpr to ONNX, one operator per primitive.

ONNX images are NCHW, JAX's are NHWC. After the first operator, arrays with four or more axes are
stored with height and width last, so that no transposition remains inside the network. Whatever
does not depend on the image is computed at conversion, which reduces batch norm to one product and
two sums; runtimes fold these into the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

import atkd_jax
from atkd_jax.errors import UserError
from atkd_jax.export.onnx_operators import OPERATORS, Value, stored
from atkd_jax.export.trained import Serve

OPSET = 17
INLINED = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")


def convert(serve: Serve, image_shape: tuple[int, int, int]) -> bytes:
    """Returns an ONNX file: input `image` [1, H, W, 3] uint8, output `logits` [1, K] float32.

    Raises:
      UserError: the network uses a primitive that is not in `OPERATORS`.
    """
    import onnx

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    closed = jax.make_jaxpr(serve)(image)
    graph = Graph(onnx)
    (logits,) = graph.run(closed, [graph.node("Transpose", "image", perm=stored(4))])
    assert isinstance(logits, str), "computed from the image"
    graph.nodes.append(onnx.helper.make_node("Identity", [logits], ["logits"]))
    info = onnx.helper.make_tensor_value_info
    shape = closed.out_avals[0].shape
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "student",
            [info("image", onnx.TensorProto.UINT8, image.shape)],
            [info("logits", onnx.TensorProto.FLOAT, shape)],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="atkd_jax",
        producer_version=atkd_jax.__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class Graph:
    """An ONNX graph under construction."""

    def __init__(self, onnx: ModuleType):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        """Adds an operator and returns the name of its output; array inputs become constants."""
        name = f"{operator}_{len(self.nodes)}"
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(operator, names, [name], **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def run(self, closed: ClosedJaxpr, args: Sequence[Value]) -> list[Value]:
        """Adds the equations of a closed jaxpr applied to `args`; returns its outputs."""
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
        known |= zip(jaxpr.invars, args, strict=True)

        def value(var: Any) -> Value:
            if not isinstance(var, Literal):
                return known[var]
            aval: Any = var.aval  # a ShapedArray
            return np.asarray(var.val, aval.dtype)

        for eqn in jaxpr.eqns:
            known |= zip(eqn.outvars, self._equation(eqn, [*map(value, eqn.invars)]), strict=True)
        return [*map(value, jaxpr.outvars)]

    def _equation(self, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
        primitive, params = eqn.primitive, eqn.params
        if primitive.name in INLINED:
            return self.run(params["jaxpr" if "jaxpr" in params else "call_jaxpr"], inputs)
        if not any(isinstance(x, str) for x in inputs):
            outputs = primitive.bind(*inputs, **params)
            return [*map(np.asarray, outputs if primitive.multiple_results else [outputs])]
        if primitive.name not in OPERATORS:
            raise UserError(
                f"no ONNX operator is known here for {primitive.name!r}; add one to"
                " atkd_jax/export/onnx_operators.py, or export to tflite"
            )
        return [OPERATORS[primitive.name](self, eqn, *inputs)]
