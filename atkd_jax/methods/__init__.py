"""Every distillation method by name. A new one is a file in this folder and a line in METHODS."""

from __future__ import annotations

import dataclasses
import importlib

from atkd_jax.errors import UserError, check_known
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

__all__ = ["METHODS", "Context", "Extras", "LossOut", "Method", "create", "find"]

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


def find(name: str) -> type[Method]:
    """The class of a method.

    Args:
      name: a key of METHODS; or MODULE:NAME, a class in a module of the user's own, which Python
        finds from the folder that a command is started in.

    Raises:
      UserError: there is none. Errors inside the user's module are raised as they are.
    """
    if ":" in name:
        return _find_own(name)
    check_known("method", name, METHODS)
    return METHODS[name]


def _find_own(name: str) -> type[Method]:
    module_name, _, class_name = name.partition(":")
    if not (module_name.isidentifier() and class_name.isidentifier()):
        raise UserError(f"{name!r} names no method; name one as MODULE:NAME, for MODULE.py here")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise UserError(
            f"there is no module {module_name} for the method {name}; start the command in the"
            f" folder of {module_name}.py"
        ) from error
    if not hasattr(module, class_name):
        raise UserError(f"{module.__file__} has no {class_name}, which is to be a method")
    kind = getattr(module, class_name)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"{class_name} of {module.__file__} is no subclass of atkd_jax.Method")
    return kind


def create(name: str, **fields) -> Method:
    """The method called `name`, as in `find`, with its hyper-parameters.

    Raises:
      UserError: no such method, no such hyper-parameter of it, or a value out of its range.
    """
    kind = find(name)
    for field in fields:
        known = [f.name for f in dataclasses.fields(kind)]
        check_known(f"hyper-parameter of {name}", field, known)
    return kind(**fields)
