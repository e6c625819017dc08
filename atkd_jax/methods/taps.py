"""Taps: which features of the two networks a method compares.

Networks may be arrays or `jax.ShapeDtypeStruct`s everywhere. `method` is named in errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atkd_jax.errors import UserError
from atkd_jax.types import Array, ModelOut


def stage_names(feats: Mapping[str, Array]) -> tuple[str, ...]:
    """("stage1", ..., "stageN"): the stage ends that a network has."""
    n = 0
    while f"stage{n + 1}" in feats:
        n += 1
    return tuple(f"stage{i + 1}" for i in range(n))


def tap_pairs(
    method: str, t: ModelOut, s: ModelOut, taps: Sequence[str] = ()
) -> list[tuple[Array, Array]]:
    """[(teacher's feature, student's feature), ...], one pair per tap.

    Args:
      method: named in the error.
      t, s: outputs of the two networks, arrays or `jax.ShapeDtypeStruct`s.
      taps: names of features; none named: the stages that both networks have, from the front.

    Raises:
      UserError: a network has no such tap, or the two share no stage.
    """
    taps = taps or min(stage_names(t.feats), stage_names(s.feats), key=len)
    if not taps:
        raise UserError(f"{method}: there is no stage to compare; name one in taps")
    for role, out in (("teacher", t), ("student", s)):
        for tap in taps:
            if tap not in out.feats:
                raise UserError(f"{method}: the {role} has no tap {tap}; it has {_list(out)}")
    return [(t.feats[tap], s.feats[tap]) for tap in taps]


def map_pairs(
    method: str, t: ModelOut, s: ModelOut, taps: Sequence[str] = ()
) -> list[tuple[Array, Array]]:
    """`tap_pairs` for methods that compare positions: every feature has to be a map [B, H, W, C].

    Raises:
      UserError: as `tap_pairs`, or a feature has no positions.
    """
    t, s = (out._replace(feats=_maps(method, out, taps)) for out in (t, s))
    return tap_pairs(method, t, s, taps)


def _maps(method: str, out: ModelOut, taps: Sequence[str]) -> dict[str, Array]:
    maps = {name: feat for name, feat in out.feats.items() if len(feat.shape) == 4}
    for tap in taps:
        if tap in out.feats and tap not in maps:
            raise UserError(
                f"{method}: {tap} is no map of features, which is needed here; take one of"
                f" {_list(out._replace(feats=maps))}"
            )
    return maps


def last_stages(method: str, t: ModelOut, s: ModelOut) -> tuple[Array, Array]:
    """(teacher's, student's) last stage end, each network's own last.

    Raises:
      UserError: a network has no stages.
    """
    for role, out in (("teacher", t), ("student", s)):
        if not stage_names(out.feats):
            raise UserError(f"{method}: the {role} has no stages; it has {_list(out)}")
    return t.feats[stage_names(t.feats)[-1]], s.feats[stage_names(s.feats)[-1]]


def block_taps(
    method: str, t: ModelOut, s: ModelOut, teacher_stride: int
) -> tuple[list[Array], list[Array]]:
    """Outputs of residual blocks, first to last: every n-th of the teacher's, all the student's.

    Raises:
      UserError: a network has none.
    """
    blocks = []
    for role, out, stride in (("teacher", t, teacher_stride), ("student", s, 1)):
        last = 0
        while f"block{last + 1}" in out.feats:
            last += 1
        if last < stride:
            raise UserError(
                f"{method}: the {role} has {last} residual blocks (taps block1, block2, ...); "
                f"at least {stride} are needed"
            )
        blocks.append([out.feats[f"block{i}"] for i in range(stride, last + 1, stride)])
    return blocks[0], blocks[1]


def check_classes(method: str, t: ModelOut, s: ModelOut) -> None:
    """Raises UserError unless both networks have logits over the same number of classes."""
    k_t, k_s = t.logits.shape[-1], s.logits.shape[-1]
    if k_t != k_s:
        raise UserError(f"{method}: the teacher has {k_t} classes, the student {k_s}")


def check_two_examples(method: str, s: ModelOut) -> None:
    """Raises UserError for a global batch of one, in which there is nothing to compare."""
    if s.logits.shape[0] < 2:
        raise UserError(f"{method}: compares examples with each other; batch_size must exceed 1")


def _list(out: ModelOut) -> str:
    return ", ".join(name for name in out.feats if not name.startswith("block")) or "no taps"
