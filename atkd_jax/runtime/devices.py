"""Devices: how arrays are replicated or sharded, and how a per-device function runs on all of them.

A function is written for one device with `Collectives`. Its arguments are replicated (state,
variables, a data set in memory) or stacks of batches [steps, B, ...] whose second axis is sharded
over the devices. Its results are replicated.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from atkd_jax.errors import UserError
from atkd_jax.nn import collectives
from atkd_jax.nn.collectives import Collectives
from atkd_jax.types import Array, PyTree

AXIS = "batch"
# By default XLA for CPU leaves convolutions and matrix products to YNNPACK too, which takes about
# twice as long for a kernel's gradient and sums it less accurately.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
MODES = ("shard_map", "pmap", "none")


class Parallel:
    """A set of devices and the way to run on them.

    Args:
      mode: "shard_map" (one code path for one device, many, or many processes), "pmap" (the same
        program through the older API), "none" (plain jit on one device, the reference).
      devices: all devices of the job unless given.

    Raises:
      UserError: an unknown mode, or "none" for more than one process.
    """

    def __init__(self, mode: str = "shard_map", devices: list[jax.Device] | None = None):
        if mode not in MODES:
            raise UserError(f"parallel={mode!r} is unknown; choose one of {', '.join(MODES)}")
        if mode == "none" and jax.process_count() > 1:
            raise UserError("parallel=none runs on one device; use shard_map on several hosts")
        devices = devices or (jax.devices()[:1] if mode == "none" else jax.devices())
        self.mode = mode
        self.devices = devices
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self.replicated = NamedSharding(self.mesh, P())
        self.sharded = NamedSharding(self.mesh, P(None, AXIS))
        self.options = CPU_OPTIONS if devices[0].platform == "cpu" else {}
        # Passed to per-device functions; without a name where there is no named axis.
        self.axis = Collectives() if mode == "none" else collectives.over(AXIS)
        self._any = jax.jit(jnp.any, out_shardings=self.replicated)

    @property
    def steps_per_call(self) -> int:
        """Training steps per call, for data in memory.

        Fewer let a run react sooner to a signal; more save overhead, which on CPU is the memory
        that the first step of every call allocates (experiments/benchmarks/step.py).
        """
        return 10 if self.devices[0].platform == "cpu" else 50

    def check_batch(self, batch_size: int, what: str = "batch_size") -> None:
        """Raises UserError unless a global batch can be split evenly over the devices."""
        if batch_size % len(self.devices):
            raise UserError(
                f"{what} {batch_size} is not divisible by {len(self.devices)} devices;"
                f" choose a multiple of {len(self.devices)}"
            )

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies host arrays, equal in all processes, to every device."""

        def put(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.replicated, lambda i: x[i])

        return jax.tree.map(put, tree)

    def shard_batches(self, tree: PyTree) -> PyTree:
        """Shards global stacks [steps, B, ...], which every process has, over the devices."""

        def put(x):
            x = np.asarray(x)
            if self.mode == "pmap":
                return np.array_split(x, jax.process_count(), axis=1)[jax.process_index()]
            return jax.make_array_from_callback(x.shape, self.sharded, lambda i: x[i])

        return self._split(jax.tree.map(put, tree))

    def shard_local_batches(self, tree: PyTree) -> PyTree:
        """Shards stacks [steps, B / processes, ...], of which every process has its own part."""
        if self.mode != "pmap":
            put = functools.partial(jax.make_array_from_process_local_data, self.sharded)
            tree = jax.tree.map(put, tree)
        return self._split(tree)

    def _split(self, tree: PyTree) -> PyTree:
        """For pmap, adds an axis: [steps, B, ...] -> [steps, devices of this process, B', ...]."""
        if self.mode != "pmap":
            return tree
        n = len(self.devices) // jax.process_count()
        return jax.tree.map(lambda x: x.reshape(len(x), n, -1, *x.shape[2:]), tree)

    def any_host(self, flag: bool) -> Array | np.bool_:
        """Whether `flag` is true in any process; equal in all, ready after the steps before it."""
        if jax.process_count() == 1:
            return np.bool_(flag)
        flags = jax.make_array_from_callback(
            (len(self.devices),), NamedSharding(self.mesh, P(AXIS)), lambda i: np.array([flag])
        )
        return self._any(flags)

    def shapes(self, tree: PyTree) -> PyTree:
        """The shapes that `replicate` would return for a tree of `ShapeDtypeStruct`s."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree
        )

    def sharded_shapes(self, tree: PyTree) -> PyTree:
        """The shapes that `shard_batches` would return; with pmap, for one process only."""
        if self.mode == "pmap":
            return jax.eval_shape(self._split, tree)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharded), tree
        )

    def init(self, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """Runs a function once and replicates its results.

        Args:
          args: of the function, equal in all processes. What differs between runs, such as a seed,
            belongs here: a constant would become part of the program, which then is compiled anew.
        """
        options = None
        if self.devices[0].platform == "cpu":
            # Compiling takes far longer than running once. The results have the same bits.
            options = {"xla_backend_optimization_level": 1}
        jitted = jax.jit(function, out_shardings=self.replicated, compiler_options=options)
        return jitted(*args)

    def spmd(
        self, function: Callable, sharded: tuple[int, ...] = (), donate: tuple[int, ...] = ()
    ) -> Callable:
        """Compiles a per-device function for all devices.

        Args:
          function: takes positional arguments; arguments and results are trees of arrays.
          sharded: positions of the arguments that are stacks of batches [steps, B, ...].
          donate: positions of the arguments whose buffers the results may reuse.
        """
        if self.mode == "none":
            return jax.jit(function, donate_argnums=donate, compiler_options=self.options)
        arguments = range(len(inspect.signature(function).parameters))
        if self.mode == "pmap":
            mapped = jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=tuple(1 if i in sharded else None for i in arguments),
                out_axes=None,
                devices=self.devices,
                donate_argnums=donate,
            )
            if jax.process_count() == 1:
                return mapped
            # Each of several processes gets its own results, which Orbax does not accept.
            to_global = multihost_utils.host_local_array_to_global_array
            return lambda *args: to_global(mapped(*args), self.mesh, P())
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(P(None, AXIS) if i in sharded else P() for i in arguments),
            out_specs=P(),
            # With the default, True, gradients averaged by hand silently become too large.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate, compiler_options=self.options)
