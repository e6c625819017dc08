"""Networks' blocks as noise, for the methods that match them by attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax import methods
from atkd_jax.methods import Context, Extras
from atkd_jax.methods.afd import Attention, attend
from atkd_jax.types import ModelOut

KEY = jax.random.key(0)


def blocks(maps) -> ModelOut:
    feats = {f"block{i + 1}": x for i, x in enumerate(maps)}
    return ModelOut(jnp.zeros((len(maps[0]), 10)), feats)


def noise(seed, *shapes, b=4) -> ModelOut:
    """Four examples of blocks with the given (H, W, C)."""
    rng = np.random.default_rng(seed)
    maps = [np.maximum(rng.normal(size=(b, *shape)), 0) for shape in shapes]
    return blocks([jnp.asarray(x, jnp.float32) for x in maps])


T = noise(0, (8, 8, 4), (4, 4, 8), (2, 2, 8))
S = noise(1, (8, 8, 3), (4, 4, 5))
METHOD = methods.create("rtk", dim=8)
EXTRAS = METHOD.init(KEY, T, S, None)


def loss_of(method, t=T, s=S):
    """(extras, step=0) -> LossOut, compiled."""
    return jax.jit(lambda extras, step=0: method.loss(extras, t, s, None, Context(KEY, step)))


def loss_and_grad(method, extras, t, s):
    """(LossOut, gradients of the loss to the parameters and to the student)."""

    @jax.jit
    def run(params, s):
        def loss(params, s):
            out = method.loss(Extras(params, extras.state), t, s, None, Context(KEY))
            return out.loss, out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, s)

    grads, out = run(extras.params, s)
    return out, grads


def attention(query_relu=False, s=S):
    """[B, T, S]."""
    module = functools.partial(attend, Attention(8, query_relu))
    inputs = list(T.feats.values()), list(s.feats.values())
    return np.asarray(jax.jit(module)(EXTRAS.params, EXTRAS.state["batch_stats"], *inputs)[0])
