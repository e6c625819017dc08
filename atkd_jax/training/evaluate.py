"""Accuracy on a test set, every example exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atkd_jax.models.network import Network
from atkd_jax.nn import ops
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training.loader import Loader
from atkd_jax.types import Array, Batch, PyTree

EVAL_BATCH = 500


def make_evaluate(
    network: Network, loader: Loader, parallel: Parallel, batch_size: int = 0
) -> Callable[[PyTree], dict[str, float]]:
    """Builds `evaluate(variables) -> {"top1", "top5" in percent, "loss" in nats}`.

    Args:
      variables: later, {"params", "batch_stats"} of the network, replicated.
      batch_size: global; rounded up to a multiple of the devices.

    Raises:
      RuntimeError: later, if the examples counted are not the test set's.
      FloatingPointError: later, if the loss is not finite. Accuracies alone do not reveal logits
        that are NaN.
    """
    step, axis = make_eval_step(network), parallel.axis
    devices = len(parallel.devices)
    batch_size = -(-(batch_size or min(EVAL_BATCH, loader.info.num_test)) // devices) * devices

    def over_stack(variables, data, stack):
        def one(item):
            return step(variables, loader.fetch(data, item))

        sums = jax.tree.map(jnp.sum, jax.lax.map(one, stack))
        return jax.tree.map(lambda x: jnp.sum(axis.gather(x[None])), sums)

    compiled = parallel.spmd(over_stack, sharded=(2,))

    def evaluate(variables: PyTree) -> dict[str, float]:
        parts = [compiled(variables, loader.test_data, stack) for stack in loader.test(batch_size)]
        sums = {key: sum(float(part[key]) for part in parts) for key in parts[0]}
        if sums["count"] != loader.info.num_test:
            raise RuntimeError(
                f"evaluated {sums['count']:.0f} examples, but {loader.info.name} has"
                f" {loader.info.num_test}: the test data are incomplete"
            )
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(
                f"the loss is not finite on the test set of {loader.info.name}; what was saved"
                " before is good; lower optimizer.lr or the term's weight, or if it is the"
                " teacher's, give other teacher.weights"
            )
        count = sums["count"]
        return {
            "top1": 100 * sums["top1"] / count,
            "top5": 100 * sums["top5"] / count,
            "loss": sums["loss"] / count,
        }

    return evaluate


def make_eval_step(network: Network) -> Callable[[PyTree, Batch], dict[str, Array]]:
    """Builds `step(variables, batch) -> sums over the unmasked examples` for one device.

    The sums: top1 and top5 (correct answers), loss (nats), count (examples).
    """

    def eval_step(variables: PyTree, batch: Batch) -> dict[str, Array]:
        logits = network.infer(variables, batch.image.astype(jnp.float32) / 255.0).logits
        assert batch.mask is not None, "loaders mask the padding of test batches"
        mask = batch.mask.astype(jnp.float32)
        true_logit = jnp.take_along_axis(logits, batch.label[:, None], axis=1)
        rank = jnp.sum(logits > true_logit, axis=1)  # [B] classes that beat the true one
        return {
            "top1": jnp.sum(mask * (jnp.argmax(logits, 1) == batch.label)),
            "top5": jnp.sum(mask * (rank < 5)),
            "loss": jnp.sum(
                mask * jax.vmap(ops.cross_entropy)(logits[:, None], batch.label[:, None])
            ),
            "count": jnp.sum(mask),
        }

    return eval_step
