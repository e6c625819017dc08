"""Jobs of several processes: how they connect, agree, and end when one of them is lost."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atkd_jax import ranges
from atkd_jax.errors import UserError

FLAGS = "--coordinator_address=HOST:PORT, --num_processes and --process_id"
GRACE = 2.0  # seconds that other processes have to print before process 0 exits and ends them


def connect(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the job, from the flags if given, else from the environment of TPU, Slurm or Open MPI.

    Must be called before JAX touches a device. Without flags and outside such a job, this process
    runs alone. JAX detects a dead process within 100 seconds and then ends all others.

    Args:
      address: HOST:PORT of process 0.
      num_processes, process_id: how many there are, and which this is.

    Raises:
      UserError: only some of the flags are given, or they are inconsistent.
    """
    # JAX's own service would catch SIGTERM and do nothing unless polled at every step.
    jax.config.update("jax_enable_preemption_service", False)
    if address is None and num_processes is None and process_id is None:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):
                raise
    elif address is None or num_processes is None or process_id is None:
        raise UserError(f"{FLAGS} belong together; give all three on every host, or none")
    else:
        check_flags(address, num_processes, process_id)
        jax.distributed.initialize(
            address, num_processes, process_id, cluster_detection_method="deactivate"
        )
    if jax.distributed.is_initialized():
        with abort_on_lost_host():
            _meet()


def _meet() -> None:
    """Connects all devices before anything large is compiled.

    At the first reduction over all devices, Gloo (CPU's backend) waits 30 seconds for the others.
    Hosts that compile a training step first may be further apart.
    """
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), "all"), PartitionSpec("all"))
    ones = np.ones(jax.device_count(), np.int32)
    spread = jax.make_array_from_callback(ones.shape, everywhere, lambda i: ones[i])
    jax.block_until_ready(jax.jit(jnp.sum)(spread))


def check_flags(address: str, num_processes: int, process_id: int) -> None:
    """Raises UserError if the flags cannot work: JAX would wait forever, or crash."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(
            f"--coordinator_address={address} is not HOST:PORT with a port from 1 to {2**16 - 1}"
        )
    ranges.check("--num_processes", num_processes, ranges.whole(1))
    ranges.check("--process_id", process_id, ranges.whole(0, num_processes - 1))
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
        if process_id == 0:
            both = socket.has_dualstack_ipv6()  # as JAX listens
            family = socket.AF_INET6 if both else socket.AF_INET
            socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--coordinator_address={address} cannot be used: {error}") from None


def is_multi_host() -> bool:
    """Whether this process is one of several in a job. Outside of a job it touches no device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def log_once(text: str) -> None:
    """Prints a line on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def assert_equal_across_hosts(value: str, complaint: str) -> None:
    """Raises UserError(complaint) on all hosts unless all pass the same value."""
    if jax.process_count() > 1:
        crc = np.uint32(zlib.crc32(value.encode()))
        if len(set(multihost_utils.process_allgather(crc).tolist())) > 1:
            raise UserError(complaint)


def abort(message: str) -> NoReturn:
    """Prints an error and exits with code 1 at once.

    A normal exit would wait minutes for other hosts, and for threads that wait for a disk.
    """
    with contextlib.suppress(OSError):  # of a closed pipe
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    if is_multi_host() and jax.process_index() == 0:
        time.sleep(GRACE)
    os._exit(1)


@contextlib.contextmanager
def abort_on_lost_host() -> Iterator[None]:
    """Aborts when a computation of several hosts fails, which happens when one of them dies."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        abort(
            f"error: host {jax.process_index()} lost another host, whose own log may say why"
            f" ({str(error).splitlines()[0][:200]}). Start the same command on all hosts again: it"
            " goes on from the last checkpoint"
        )
