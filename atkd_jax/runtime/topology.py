"""TPU slices to compile for without having one, and what is published about their chips.

XLA's TPU compiler, libtpu, runs on any Linux machine; `pip install "jax[tpu]"` installs it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from atkd_jax.errors import UserError, check_known
from atkd_jax.ranges import Range


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU chips.

    Attributes:
      flops: peak bfloat16 operations per second.
      bandwidth: of the memory (HBM), in bytes per second.
      memory: size of the HBM in bytes.
      pod: the most chips that a slice has.
      source: Google's page with these numbers.
      options: of `get_topology_desc`. Of a chip with two cores, "megacore" makes one device.
    """

    flops: float
    bandwidth: float
    memory: float
    pod: int
    source: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)


PAGES = "docs.cloud.google.com/tpu/docs"  # read in November 2026
MEGACORE = {"chip_config_name": "megacore"}
CHIPS = {
    "v4": Chip(275e12, 1200e9, 32 * 2**30, 4096, f"{PAGES}/v4", MEGACORE),
    "v5e": Chip(197e12, 819e9, 16e9, 256, f"{PAGES}/v5e"),
    "v5p": Chip(459e12, 2765e9, 95e9, 6144, f"{PAGES}/v5p", MEGACORE),
    "v6e": Chip(918e12, 1638e9, 32e9, 256, f"{PAGES}/v6e"),
}
NAME = re.compile(r"(\w+):\d+(?:x\d+)+", re.ASCII)
SLICE = Range(
    "a slice of TPU chips, such as v5e:4x8, or empty",
    lambda value: isinstance(value, str) and (not value or NAME.fullmatch(value) is not None),
)
# libtpu reads these when it is loaded: it is to look for no TPU, neither here nor in the cloud's
# metadata, and to run beside other processes that have loaded it.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def leave_accelerators() -> None:
    """Keeps JAX off this machine's accelerators. Has to be called before JAX touches a device.

    Off its compilation cache too, which cannot read programs for devices that are not there.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def chip(topology: str) -> Chip:
    """The chip of a slice, "v5e:4x8".

    Raises:
      UserError: it is not one of `CHIPS`, or the slice is larger than a pod.
    """
    generation, _, shape = topology.partition(":")
    check_known("generation of TPU in topology", generation, CHIPS)
    found, chips = CHIPS[generation], math.prod(map(int, shape.split("x")))
    if chips > found.pod:
        raise UserError(
            f"topology {topology} has {chips} chips; a slice of {generation} has at most"
            f" {found.pod}"
        )
    return found


def devices(topology: str) -> list[jax.Device]:
    """Devices of a slice, to be compiled for; they compute nothing.

    Raises:
      UserError: there is no such slice, or libtpu is not installed.
    """
    options = chip(topology).options
    os.environ.update(ENVIRONMENT)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"topology {topology} is no slice that XLA's compiler accepts:"
            f" {str(error).splitlines()[0]}"
        ) from None
    except RuntimeError as error:
        if "TPU support not installed" not in str(error):
            raise
        raise UserError(
            f"topology {topology} needs XLA's compiler for TPUs, which is not installed; run"
            ' pip install "jax[tpu]"'
        ) from None


def roofline(chip: Chip, flops: float, traffic: float) -> tuple[float, float]:
    """The least time that a program needs on a chip, in seconds: (arithmetic, memory).

    The larger of the two bounds the program's time from below (Williams et al. 2009, Roofline,
    doi.org/10.1145/1498765.1498785).

    Args:
      flops: operations.
      traffic: bytes read from memory and written to it.
    """
    return flops / chip.flops, traffic / chip.bandwidth
