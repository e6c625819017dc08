"""Every distillation method by name. A new one is a file beside this one and a line in METHODS."""

from __future__ import annotations

import dataclasses

from atkd_jax.errors import check_known
from atkd_jax.methods.afd import AFD
from atkd_jax.methods.aft import AFT
from atkd_jax.methods.at import AT
from atkd_jax.methods.base import Context, Extras, LossOut, Method
from atkd_jax.methods.cc import CC
from atkd_jax.methods.crd import CRD
from atkd_jax.methods.dkd import DKD
from atkd_jax.methods.fitnet import FitNet
from atkd_jax.methods.fsp import FSP
from atkd_jax.methods.kd import KD
from atkd_jax.methods.nst import NST
from atkd_jax.methods.pkt import PKT
from atkd_jax.methods.reviewkd import ReviewKD
from atkd_jax.methods.rkd import RKD
from atkd_jax.methods.rtk import RTK
from atkd_jax.methods.self_attention import SelfAttention
from atkd_jax.methods.sp import SP
from atkd_jax.methods.vid import VID

__all__ = ["METHODS", "Context", "Extras", "LossOut", "Method", "create"]

METHODS: dict[str, type[Method]] = {
    "kd": KD,
    "at": AT,
    "self_attention": SelfAttention,
    "fitnet": FitNet,
    "sp": SP,
    "cc": CC,
    "vid": VID,
    "rkd": RKD,
    "pkt": PKT,
    "nst": NST,
    "fsp": FSP,
    "crd": CRD,
    "afd": AFD,
    "rtk": RTK,
    "aft": AFT,
    "dkd": DKD,
    "reviewkd": ReviewKD,
}


def create(name: str, **fields) -> Method:
    """The method called `name` with its hyper-parameters; those not given keep their defaults.

    Raises:
      ValueError: no such method, no such hyper-parameter of it, or a value it cannot take.
    """
    check_known("method", name, METHODS)
    for field in fields:
        known = [f.name for f in dataclasses.fields(METHODS[name])]
        check_known(f"hyper-parameter of {name}", field, known)
    return METHODS[name](**fields)
