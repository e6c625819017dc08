"""The loss of a step: hard labels plus a weighted sum of distillation methods.

    L = ce_weight * CE(y, z_s) + sum_i weight_i(step) * L_i(teacher, student)

Cross-entropy with hard labels and all weights are defined here only; methods do without them. With
no terms this is plain supervised training, as for teachers and baselines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp

from atkd_jax.errors import UserError
from atkd_jax.methods.base import Context, Extras, Method
from atkd_jax.nn import ops
from atkd_jax.nn.collectives import Collectives
from atkd_jax.types import Array, Batch, DataInfo, Metrics, ModelOut, PyTree


@dataclasses.dataclass(frozen=True)
class Term:
    """A method and its weight: a number, or a function of the step (a warm-up)."""

    weight: float | Callable[[Array | int], Array | float]
    method: Method

    def weight_at(self, step: Array | int) -> Array | float:
        return self.weight(step) if callable(self.weight) else self.weight


@dataclasses.dataclass(frozen=True)
class Objective:
    """Cross-entropy and named terms.

    Attributes:
      ce_weight: weight of the cross-entropy with the labels.
      terms: name -> Term; empty means that no teacher is needed.
      label_smoothing: the part of a label that is spread over all classes; in the cross-entropy
        only, not in the labels that methods receive.
    """

    ce_weight: float = 1.0
    terms: Mapping[str, Term] = dataclasses.field(default_factory=dict)
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing {self.label_smoothing} is not in 0..1, below 1")

    def init(self, rng: Array, t: ModelOut | None, s: ModelOut, data: DataInfo) -> Extras:
        """Parameters and state of every term, under the terms' names, for the global batch."""
        extras = {
            name: term.method.init(jax.random.fold_in(rng, i), cast(ModelOut, t), s, data)
            for i, (name, term) in enumerate(self.terms.items())
        }
        return Extras(
            {name: e.params for name, e in extras.items()},
            {name: e.state for name, e in extras.items()},
        )

    def loss(
        self,
        extras: Extras,
        t: ModelOut | None,
        s: ModelOut,
        batch: Batch,
        ctx: Context,
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """The weighted sum of this device's part, the next state, and every part as a metric.

        Args:
          extras: of `init`.
          t, s: outputs of the two networks for this device's part; t is treated as a constant.
          batch: this device's part.
          ctx: the same on all devices.

        Returns:
          the loss, and (the next state, equal on all devices; unweighted parts).
        """
        t = cast(ModelOut, jax.lax.stop_gradient(t))  # None only if there are no terms
        everyone = None
        ce = ops.cross_entropy(s.logits, batch.label, self.label_smoothing)
        total = self.ce_weight * ce
        state, metrics = {}, {"ce": ce}
        for i, (name, term) in enumerate(self.terms.items()):
            seen = (t, s, batch)
            if term.method.needs_global_batch:
                everyone = everyone or ctx.axis.gather(seen)
                seen = everyone
            own = Extras(extras.params[name], extras.state[name])
            out = term.method.loss(own, *seen, ctx._replace(rng=jax.random.fold_in(ctx.rng, i)))
            total += term.weight_at(ctx.step) * out.loss
            state[name] = jax.lax.stop_gradient(out.state)
            if not term.method.needs_global_batch:  # computed from a part of the batch
                state[name] = _mean_of_floats(state[name], ctx.axis)
            metrics[name] = out.loss
            metrics |= {f"{name}/{key}": value for key, value in out.metrics.items()}
        return total, (state, {"loss": total} | metrics)


def _mean_of_floats(state: PyTree, axis: Collectives) -> PyTree:
    """Averages floating-point leaves over the devices, which keeps replicated state replicated."""
    leaves, structure = jax.tree.flatten(state)
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]
    for i, mean in zip(floats, axis.mean([leaves[i] for i in floats]), strict=True):
        leaves[i] = mean
    return jax.tree.unflatten(structure, leaves)
