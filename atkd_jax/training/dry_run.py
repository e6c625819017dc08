"""Describes a run without starting it: `--config.dry_run=True`. Downloads nothing.

The step is compiled ahead of time from shapes alone, for the present devices or for a slice of TPUs
that nobody has yet (`--config.topology=v5e:4x8`): a run that does not fit in memory is found in
minutes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import ShapeDtypeStruct as Shape
from ml_collections import ConfigDict

from atkd_jax.errors import UserError
from atkd_jax.models.network import Network
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.nn.platform import portable
from atkd_jax.runtime import hlo, topology
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config, settings
from atkd_jax.training.loader import MemoryLoader, StreamLoader
from atkd_jax.training.setup import Setup, compile_steps, make_parallel, make_setup, steps_per_call
from atkd_jax.types import Batch, DataInfo, PyTree

SPEED = 1000  # images per second and device, for which the reading is stated
GIB, MIB = 2**30, 2**20


class AbstractLoader(NamedTuple):
    """Shapes of what a loader would give, without its data."""

    info: DataInfo
    steps_per_epoch: int
    in_memory: bool
    fetch: Callable[[PyTree, PyTree], Batch]
    train_data: PyTree
    stack: PyTree


def known(config: ConfigDict) -> tuple[DataInfo, bool]:
    """The facts of the data set and whether it stays in memory. Downloads nothing."""
    dataset = from_config.dataset(config)
    info = dataset.info(config.data.data_dir or None)
    if dataset.in_memory and info.train_label is None:  # CRD needs labels, of any value
        label = (np.arange(info.num_train) % info.num_classes).astype(np.int32)
        info = dataclasses.replace(info, train_label=label)
    return info, dataset.in_memory


def abstract_loader(config: ConfigDict, parallel: Parallel) -> AbstractLoader:
    """Shapes as a loader would give them to a call."""
    info, in_memory = known(config)
    if config.batch_size > info.num_train:
        raise UserError(
            f"batch_size {config.batch_size} is larger than the training set of {info.name}"
            f" ({info.num_train} examples); choose a smaller one"
        )
    epoch = info.num_train // config.batch_size
    data: PyTree
    stack: PyTree
    fetch: Callable[[PyTree, PyTree], Batch]
    if in_memory:
        shape = (epoch, config.batch_size)
        data = (
            Shape((info.num_train, *info.image_shape), np.uint8),
            Shape((info.num_train,), np.int32),
        )
        stack, fetch = (Shape(shape, np.int32), None), MemoryLoader.fetch
    else:
        shape = (config.steps_per_dispatch or 1, config.batch_size)
        image: Any = Shape((*shape, *info.image_shape), np.uint8)
        numbers: Any = Shape(shape, np.int32)
        data, stack, fetch = (), Batch(image, numbers, numbers), StreamLoader.fetch
    shapes = parallel.shapes(data), parallel.sharded_shapes(stack)
    return AbstractLoader(info, epoch, in_memory, fetch, *shapes)


class Plan(NamedTuple):
    """A run in shapes."""

    parallel: Parallel
    loader: AbstractLoader
    setup: Setup
    steps_per_call: int


def make_plan(config: ConfigDict) -> Plan:
    """Sets up the run of a configuration without reading data or weights.

    Raises:
      UserError: as a run with this configuration would, but for a teacher's missing weights.
    """
    settings.check(config)
    config = config.copy_and_resolve_references()
    if config.teacher.weights:  # shapes need none
        config.teacher.update(weights="", weights_key="", mean=(), std=())
    parallel = make_parallel(config)
    loader = abstract_loader(config, parallel)
    setup = make_setup(config, parallel, loader.info, loader.steps_per_epoch)
    return Plan(parallel, loader, setup, steps_per_call(config, parallel, loader.in_memory))


def state_bytes(setup: Setup) -> int:
    """Size of a checkpoint in bytes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(setup.abstract_state))


def describe_plan(config: ConfigDict) -> list[str]:
    """The plan of a run, line by line.

    Raises:
      UserError: as `make_plan`.
    """
    plan = make_plan(config)
    step, info = plan.setup.step, plan.loader.info
    lines = about_run(config, plan)
    if step.teacher:
        weights = config.teacher.weights or "none given, it is trained first"
        lines.append(about_network("teacher", config.teacher.model, step.teacher, info))
        lines.append(f"teacher weights: {weights}")
    lines.append(about_network("student", config.student, step.student, info))
    if extra := count_params(plan.setup.abstract_state.params["method"]):
        lines.append(f"the methods learn {extra:,} parameters more")
    return lines + about_step(config, plan)


def about_run(config: ConfigDict, plan: Plan) -> list[str]:
    """Devices, batch, steps and the amount of data to read."""
    info, devices = plan.loader.info, plan.parallel.devices
    per_device = config.batch_size // len(devices)
    terms = ", ".join(f"{k} (weight {v.weight})" for k, v in config.terms.items()) or "none"
    where = f"of {config.topology}" if config.topology else f"on {jax.process_count()} host(s)"
    micro = f" in {config.accumulate} micro-batches" if config.accumulate > 1 else ""
    total = config.epochs * plan.loader.steps_per_epoch
    lines = [
        f"devices: {len(devices)} x {devices[0].device_kind} {where}, {config.parallel},"
        f" {config.dtype}",
        f"batch: {config.batch_size} = {len(devices)} x {per_device}{micro}",
        f"data: {info.name}, {info.num_train:,} training and {info.num_test:,} test images of"
        f" {'x'.join(map(str, info.image_shape))}, {info.num_classes} classes",
        f"methods: {terms}; cross-entropy {config.ce_weight}",
        f"steps: {config.epochs} epochs x {plan.loader.steps_per_epoch:,} = {total:,};"
        f" learning rate {float(plan.setup.lr(0)):.4g} at first,"
        f" {max_lr(plan.setup.lr, total):.4g} at most",
    ]
    speed = SPEED * len(devices)
    hours = config.epochs * info.num_train / speed / 3600
    if plan.loader.train_data:
        size = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in plan.loader.train_data)
        read = f"nothing is read, {size / MIB:,.0f} MiB of images stay on every device"
    else:
        decoded = speed * int(np.prod(info.image_shape))
        read = f"{decoded / 1e6:,.0f} MB/s of decoded images go to the devices"
        if file_bytes := from_config.dataset(config).file_bytes:
            read += f", {speed * file_bytes / 1e6:,.0f} MB/s are read"
    return [*lines, f"at {SPEED:,} images/s a device: {hours:,.1f} hours, {read}"]


def max_lr(lr: optax.Schedule, total: int) -> float:
    """The highest learning rate of a run, sampled at a thousand steps."""
    return float(max(lr(step) for step in range(0, total, max(1, total // 1000))))


def about_network(role: str, name: str, network: Network, info: DataInfo) -> str:
    """Parameters of a network, and its operations for one image in evaluation."""
    image = Shape((1, *info.image_shape), np.float32)
    variables = jax.eval_shape(network.module.init, jax.random.key(0), image)
    macs = count_macs(network.module, info.image_shape)
    return (
        f"{role} {name}: {count_params(variables):,} parameters, {macs:,} MACs"
        f" = {2 * macs:,} FLOPs an image"
    )


def about_step(config: ConfigDict, plan: Plan) -> list[str]:
    """Compiles the step and reports what XLA counts: memory, operations, on a slice much more."""
    began = time.monotonic()
    compiled = compile_step(plan)
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    if plan.parallel.devices[0].platform == "cpu":  # XLA does not see into native convolutions
        with portable():
            costs = lower_step(plan).cost_analysis() or {}
    else:
        costs = compiled.cost_analysis() or {}
    # XLA counts the body of a loop once: one step of a call, one micro-batch of a step.
    counted = config.batch_size // len(plan.parallel.devices) // config.accumulate
    lines = [
        f"compiled in {seconds:.0f} s, {plan.steps_per_call} step(s) a call",
        f"memory: {peak / GIB:.2f} GiB a device ({memory.temp_size_in_bytes / GIB:.2f} of it"
        f" while a step runs); a checkpoint is {state_bytes(plan.setup) / MIB:.0f} MiB",
        f"XLA counts {costs.get('flops', 0.0) / counted:,.0f} FLOPs an image of a step",
    ]
    if config.topology:
        chip = topology.chip(config.topology)
        fits = "fits" if peak <= chip.memory else "does NOT fit"
        lines[1] += f"; it {fits} into a chip's {chip.memory / 1e9:.0f} GB"
        text = compiled.as_text() or ""
        lines.append(about_collectives(text))
        lines += about_time(config, plan, chip, costs, hlo.seconds(text, costs))
    return lines


def lower_step(plan: Plan) -> Any:
    """Lowers the step of a run, from shapes."""
    parallel, loader, step = plan.parallel, plan.loader, plan.setup.step
    teacher = ()
    if step.teacher:
        image = Shape((1, *loader.info.image_shape), np.float32)
        teacher = jax.eval_shape(step.teacher.module.init, jax.random.key(0), image)
    state, teacher = parallel.shapes((plan.setup.abstract_state, teacher))
    number = Shape((), np.int32)
    multi_step: Any = compile_steps(step, parallel, loader.fetch)  # jitted, on a single host
    return multi_step.lower(state, teacher, loader.train_data, loader.stack, number, number, number)


def compile_step(plan: Plan) -> jax.stages.Compiled:
    """Compiles the step of a run ahead of time.

    Raises:
      UserError: it does not fit into the memory of a device.
    """
    try:
        return lower_step(plan).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the step does not fit into a device's memory; use more devices, a smaller batch_size"
            f" or accumulate: {str(error).splitlines()[0]}"
        ) from None


def about_collectives(text: str) -> str:
    """The collective operations of a step, from its optimised HLO."""
    kinds = [
        f"{count.number} {kind} of {count.bytes / MIB:.2f} MiB together"
        for kind, count in hlo.collectives(text).items()
    ]
    return f"collectives a step: {', '.join(kinds) or 'none'}"


def about_time(
    config: ConfigDict, plan: Plan, chip: topology.Chip, costs: dict[str, float], seconds: float
) -> list[str]:
    """Two estimates of a step's time: XLA's, and a roofline of the chip's published numbers.

    Both count all traffic as the memory's, also what the compiler keeps on the chip.
    """
    flops, traffic, xla = (
        config.accumulate * cost  # of one micro-batch
        for cost in (costs.get("flops", 0.0), costs.get("bytes accessed", 0.0), seconds)
    )
    arithmetic, memory = topology.roofline(chip, flops, traffic)
    speed = config.batch_size / max(arithmetic, memory)
    hours = config.epochs * plan.loader.info.num_train / speed / 3600
    return [
        f"a chip's step: {flops / 1e9:,.1f} GFLOP, {traffic / 1e9:,.2f} GB read and written; XLA"
        f" estimates {1e3 * xla:.2f} ms",
        f"roofline: {1e3 * arithmetic:.2f} ms of arithmetic at {chip.flops / 1e12:.0f} TFLOP/s,"
        f" {1e3 * memory:.2f} ms of memory at {chip.bandwidth / 1e9:,.0f} GB/s ({chip.source});"
        f" the longer would be {speed:,.0f} images/s, {hours:,.1f} hours: an estimate, nothing ran",
    ]
