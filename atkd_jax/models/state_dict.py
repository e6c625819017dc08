"""Finds the weights of a network among the dictionaries of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from atkd_jax.models.plain_pickle import Tensor, Unreadable, shown

# Names of averages over training steps, which checkpoints hold beside the weights.
AVERAGED = re.compile(r"(^|[^a-z])(ema|swa|shadow|averaged?|avg)([^a-z]|$)", re.IGNORECASE)
DEPTH = 4  # of nested dictionaries that are searched


T = TypeVar("T", Tensor, np.ndarray)


class Weights(NamedTuple, Generic[T]):
    """The weights in a file.

    Attributes:
      tensors: {name: array}, with the names, shapes and dtypes of the file; read-only views.
      key: their key in the file, such as "state_dict" or "checkpoint.model"; "" for the whole file.
      others: keys of other weights in the file, if no key was given.
    """

    tensors: dict[str, T]
    key: str
    others: tuple[str, ...]


def choose(checkpoint: Any, key: str) -> Weights[Tensor]:
    """The weights in nested dictionaries of `Tensor`s; arguments as in `load_torch`.

    Raises:
      Unreadable: there are none, or several and no key chooses among them.
    """
    if not isinstance(checkpoint, dict):
        raise Unreadable(f"it holds a {type(checkpoint).__name__}, not a state dict")
    inside = _weights_in(_under(checkpoint, key))
    found = {_joined(key, name): tensors for name, tensors in inside.items()}
    if key and not found:  # it may be a prefix of names
        found = {
            _joined(name, key): part
            for name, tensors in _weights_in(checkpoint).items()
            if (part := _under(tensors, key))
        }
    if not found:
        there = [name or "no key" for name in _weights_in(checkpoint)]
        if key and there:
            raise Unreadable(
                f"it holds no weights under {key!r} (teacher.weights_key), only under:"
                f" {listed(there)}"
            )
        raise Unreadable(
            "it holds no state dict (tensors with names such as conv1.weight), only"
            f" {listed(checkpoint) or 'nothing'}"
        )
    plain = [name for name in found if not AVERAGED.search(name)] or list(found)
    if len(plain) > 1:
        sizes = (f"{name} ({len(found[name])} tensors)" for name in plain)
        raise Unreadable(
            f"it holds several networks' weights, {listed(sizes)}; choose with teacher.weights_key"
        )
    [name] = plain
    return Weights(found[name], name, () if key else tuple(x for x in found if x != name))


def _under(checkpoint: dict, key: str) -> dict:
    """The value at the key "a.b": checkpoint["a"]["b"], ["a.b"], or all names that begin so."""
    while key:
        parts = key.split(".")
        heads = [".".join(parts[: i + 1]) for i in range(len(parts))]
        head = next((x for x in heads if isinstance(checkpoint.get(x), dict)), None)
        if head is None:
            start = f"{key}."
            return {
                name.removeprefix(start): value
                for name, value in checkpoint.items()
                if isinstance(name, str) and name.startswith(start)
            }
        checkpoint, key = checkpoint[head], key[len(head) + 1 :]
    return checkpoint


def _weights_in(checkpoint: dict) -> dict[str, dict[str, Tensor]]:
    """{key: tensors} of the outermost dictionaries that look like a network's; "" is the whole."""
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    level = {"": checkpoint}
    for _ in range(DEPTH):
        below = {}
        for path, node in level.items():
            if id(node) in seen:  # a dictionary may occur in many places, or in itself
                continue
            seen.add(id(node))
            tensors = {
                name: value
                for name, value in node.items()
                if isinstance(name, str) and isinstance(value, Tensor)
            }
            if any("." in name for name in tensors):
                found[path] = tensors
                continue
            for name, value in node.items():
                if isinstance(value, dict):
                    below[_joined(path, shown(name))] = value
        level = below
    return found


def _joined(*keys: str) -> str:
    return ".".join(filter(None, keys))


def listed(names: Iterable) -> str:
    names = [shown(name) for name in names]
    more = f" and {len(names) - 9} more" if len(names) > 9 else ""
    return ", ".join(names[:9]) + more
