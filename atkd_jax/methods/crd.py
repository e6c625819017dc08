"""Contrastive representation distillation: match an example's teacher among other examples'."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.errors import UserError
from atkd_jax.methods import taps
from atkd_jax.methods.base import Extras, LossOut, Method
from atkd_jax.nn import ops
from atkd_jax.ranges import DECAY, FLAG, POSITIVE, WIDTH, setting, whole
from atkd_jax.types import Array, DataInfo, ModelOut, PyTree

EPSILON = 1e-7
# Scores of one pass, [examples, N] float32 in 64 MiB: all examples of CIFAR, 13 of ImageNet.
MAX_SCORES = 2**24


@dataclasses.dataclass(frozen=True)
class CRD(Method):
    """Contrastive Representation Distillation (Tian, Krishnan, Isola 2020, arXiv 1910.10699).

        e      = l2n(W x + b) for each network, both learned, x the pooled features     [B, dim]
        o^s_bk = exp(<e^s_b, M^t_k> / temperature) / Z^s,   k = b's own entry 0 and K negatives
        h(o)   = o / (o + c),   c = K / N
        L      = -mean_b (log h(o^s_b0) + sum_{k >= 1} log(1 - h(o^s_bk)))   + the same of o^t, M^s

    M [N, dim] are memory banks with the embeddings of the training set: after the loss the rows of
    the batch move, M_y <- l2n(momentum M_y + (1 - momentum) e). Z is N times the mean of exp over
    the first batch and stays. Banks and Z carry no gradient. Published weight: 0.8 (RepDistiller).

    Negatives are drawn inside the step, uniformly and with replacement, from the examples of all
    other classes; RepDistiller's data loader draws without. Where the labels are not known in
    advance (`DataInfo.train_label` is None) they come from all other examples.

    An example is scored against the whole bank in one matrix product, and each score counts as
    often as it was drawn: for CIFAR on a CPU about three times faster than gathering the drawn
    rows. MAX_SCORES bounds the memory of the scores for any N and B. The banks take 8 N dim bytes:
    51 MB for CIFAR, 1.3 GB for ImageNet.

    Attributes:
      dim: width of the embeddings.
      negatives: K.
      temperature: of the scores.
      momentum: of the banks.
      other_classes: draw negatives from other classes only; otherwise from all other examples.
    """

    needs_global_batch: ClassVar[bool] = True

    dim: int = setting(128, WIDTH)
    negatives: int = setting(16384, whole(1))
    temperature: float = setting(0.07, POSITIVE)
    momentum: float = setting(0.5, DECAY)
    other_classes: bool = setting(True, FLAG)

    def init(self, rng, t, s, data):
        ((x_t, x_s),) = taps.tap_pairs("crd", t, s, ("pooled",))
        rng_t, rng_s, rng_memory_t, rng_memory_s = jax.random.split(rng, 4)
        bound = (3 / self.dim) ** 0.5  # rows of length one, about

        def memory(rng):
            return jax.random.uniform(rng, (data.num_train, self.dim), jnp.float32, -bound, bound)

        params = {
            "teacher": self._embedding(x_t).init(rng_t, jnp.zeros((1, x_t.shape[-1])))["params"],
            "student": self._embedding(x_s).init(rng_s, jnp.zeros((1, x_s.shape[-1])))["params"],
        }
        state = {
            "memory_t": memory(rng_memory_t),
            "memory_s": memory(rng_memory_s),
            "z": jnp.zeros((2,), jnp.float32),  # of the student's and the teacher's scores
            "classes": _sorted_by_class(data, self.other_classes),
        }
        return Extras(params, state)

    def loss(self, extras, t, s, batch, ctx):
        drawn = draw_negatives(ctx.rng, batch.index, extras.state["classes"], self.negatives)
        return self.contrast(extras, t, s, batch.index, drawn)

    def contrast(
        self, extras: Extras, t: ModelOut, s: ModelOut, index: Array, negatives: Array
    ) -> LossOut:
        """The loss for given negatives.

        Args:
          extras, t, s: as for `loss`.
          index: [B] int32, the examples' own numbers, different from each other.
          negatives: [B, K] int32, numbers of other examples.
        """
        e_t, e_s = (
            self._embed(extras.params["teacher"], t),
            self._embed(extras.params["student"], s),
        )
        state = extras.state
        memory_t, memory_s = state["memory_t"], state["memory_s"]

        def first_z():
            return jnp.stack(
                [
                    _normalizer(e_s / self.temperature, memory_t, index, negatives),
                    _normalizer(e_t / self.temperature, memory_s, index, negatives),
                ]
            )

        z = jax.lax.cond(state["z"][0] > 0, lambda: state["z"], first_z)
        z = jax.lax.stop_gradient(z)
        loss = _nce(e_s / self.temperature, memory_t, jnp.log(z[0]), index, negatives)
        loss += _nce(e_t / self.temperature, memory_s, jnp.log(z[1]), index, negatives)

        updated = {
            "memory_t": self._remember(memory_t, index, e_t),
            "memory_s": self._remember(memory_s, index, e_s),
            "z": z,
        }
        return LossOut(loss, state | updated)

    def _embedding(self, x: Array):
        return ops.dense(x.shape[-1], self.dim)

    def _embed(self, params: PyTree, out: ModelOut) -> Array:
        x = ops.f32(out.feats["pooled"])
        return ops.l2_normalize(self._embedding(x).apply({"params": params}, x))

    def _remember(self, memory: Array, index: Array, e: Array) -> Array:
        row = self.momentum * memory[index] + (1 - self.momentum) * e
        return memory.at[index].set(ops.l2_normalize(row))


# The loss. The functions below take one network's embeddings divided by the temperature,
# e [B, dim], and the bank of the other network, memory [N, dim].


def _nce(e: Array, memory: Array, log_z: Array, index: Array, negatives: Array) -> Array:
    """-mean_b (log h(o_b0) + sum_k log(1 - h(o_bk))), noise-contrastive estimation: []."""
    n, k = memory.shape[0], negatives.shape[1]
    log_c = math.log(k / n)
    log_m = math.log(k / n + EPSILON)

    def one(x: Array, own: Array, drawn: Array) -> Array:
        x = x - log_z - log_m  # [N] log(o / m), so that h = sigmoid(x)
        log_h = jax.nn.log_sigmoid(x[own])
        log_not_h = jax.nn.log_sigmoid(-x) + (log_c - log_m)
        return -log_h - jnp.sum(_count(drawn, n) * log_not_h)

    return _over_examples(one, e, memory, index, negatives).mean()


def _normalizer(e: Array, memory: Array, index: Array, negatives: Array) -> Array:
    """N times the mean of exp over the scores of a batch: []."""
    n, k = memory.shape[0], negatives.shape[1]

    def one(x: Array, own: Array, drawn: Array) -> Array:
        return (jnp.exp(x[own]) + jnp.sum(_count(drawn, n) * jnp.exp(x))) / (k + 1)

    return n * _over_examples(one, e, memory, index, negatives).mean()


def _count(drawn: Array, n: int) -> Array:
    """How often each of n was drawn: [K] int32 -> [n] float32; exact, whatever the order."""
    return jnp.zeros((n,), jnp.float32).at[drawn].add(1.0)


def _over_examples(one, e: Array, memory: Array, index: Array, negatives: Array) -> Array:
    """one(scores [N], own number [], negatives [K]) for every example: [B].

    As many examples at once as fit; their scores are computed anew for the gradient.
    """
    memory = jax.lax.stop_gradient(memory)

    @jax.checkpoint
    def scored(args):
        e, own, drawn = args
        return one(jnp.matmul(memory, e, precision="highest"), own, drawn)

    at_once = max(1, MAX_SCORES // memory.shape[0])
    return jax.lax.map(scored, (e, index, negatives), batch_size=at_once)


# Negatives


def _sorted_by_class(data: DataInfo, other_classes: bool) -> dict[str, Array]:
    """The training set sorted by class: its order [N], and where every example's class starts and
    stops in that order, [N] each. Without labels every example is a class of its own.
    """
    n = data.num_train
    label = np.arange(n)
    if other_classes and data.train_label is not None:
        label = np.asarray(data.train_label)
        if label.shape != (n,):
            raise UserError(f"crd: {label.size} training labels for {n} examples of {data.name}")
    order = np.argsort(label, kind="stable")
    start = np.searchsorted(label[order], label, side="left")
    stop = np.searchsorted(label[order], label, side="right")
    if np.max(stop - start) == n:
        raise UserError(f"crd: all {n} examples are of one class: there are no negatives")
    arrays = {"order": order, "start": start, "stop": stop}
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def draw_negatives(rng: Array, index: Array, classes: dict[str, Array], k: int) -> Array:
    """k examples of other classes for each of `index` [B], uniformly, with replacement: [B, k]."""
    order = classes["order"]
    start, stop = classes["start"][index][:, None], classes["stop"][index][:, None]
    others = order.size - (stop - start)
    place = jax.random.randint(rng, (index.size, k), 0, others)
    # Past the block of the example's own class.
    return order[jnp.where(place < start, place, place + stop - start)]
