"""What a run will be, before it is one: `--config.dry_run=True`. Nothing is downloaded.

The step is compiled ahead of time for the devices that are here, from shapes alone, so that a run
that does not fit in memory says so in minutes and costs nothing.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import ShapeDtypeStruct as Shape
from ml_collections import ConfigDict

from atkd_jax import build, data, settings, teacher
from atkd_jax.data import MemorySource, prepared
from atkd_jax.data import spec as specs
from atkd_jax.feed import MemoryFeed, StreamFeed
from atkd_jax.models.size import count_macs, count_params
from atkd_jax.parallel import Parallel
from atkd_jax.program import Program, assemble, make_parallel
from atkd_jax.types import Batch, DataSpec, PyTree

SPEED = 1000  # images per second and device, for which the reading is stated
# Of a training image: ILSVRC2012_img_train.tar has 147,897,477,120 bytes, its JPEGs are stored.
IMAGENET_BYTES = 147_897_477_120 // 1_281_167
GIB, MIB = 2**30, 2**20


class PaperFeed(NamedTuple):
    """What a program needs to know of a feed, without its data."""

    spec: DataSpec
    steps_per_epoch: int
    in_memory: bool
    fetch: Any
    train_data: PyTree
    stack: PyTree


def known(config: ConfigDict) -> tuple[DataSpec, bool]:
    """The facts of the data set and whether it stays in memory.

    Sets whose facts stand in the code are not touched; of the others (digits, npz:, folder:, tfds:)
    is read what opening them reads, which of a set in memory are its images.
    """
    name, options = config.data.name, config.data.options.to_dict()
    if name == "imagenet2012":
        size = options.get("image_size") or 224
        names = tuple(map(str, range(1000)))
        stats = specs.IMAGENET_MEAN, specs.IMAGENET_STD
        return DataSpec(name, (size, size, 3), names, *specs.IMAGENET_SIZES, *stats), False
    if name.startswith("tfds:"):  # opening one that is not there would download it
        prepared.on_disk(data.tfds_name(name), config.data.data_dir or None)
    if name not in specs.KNOWN:
        source = build.source(config)
        return source.spec, isinstance(source, MemorySource)
    spec = specs.KNOWN[name]
    data.check_size(spec, options.get("image_size", 0))
    more = 0
    if options.get("extra"):
        more = specs.SVHN_EXTRA
    if options.get("train") == "train+validation":
        more = specs.CINIC10_VALIDATION
    num = spec.num_train + more
    label = (np.arange(num) % spec.num_classes).astype(np.int32)  # CRD wants some, of any value
    return dataclasses.replace(spec, num_train=num, train_label=label), True


def paper_feed(config: ConfigDict, parallel: Parallel) -> PaperFeed:
    """Shapes as the feed would give them to a dispatch."""
    spec, in_memory = known(config)
    if config.batch_size > spec.num_train:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the training set of {spec.name}"
            f" ({spec.num_train} examples); choose a smaller one"
        )
    epoch = spec.num_train // config.batch_size
    if in_memory:
        shape = (epoch, config.batch_size)
        data = (
            Shape((spec.num_train, *spec.image_shape), np.uint8),
            Shape((spec.num_train,), np.int32),
        )
        stack, fetch = (Shape(shape, np.int32), None), MemoryFeed.fetch
    else:
        shape = (config.steps_per_dispatch or 1, config.batch_size)
        image = Shape((*shape, *spec.image_shape), np.uint8)
        numbers = Shape(shape, np.int32)
        data, stack, fetch = (), Batch(image, numbers, numbers), StreamFeed.fetch
    shapes = parallel.shapes(data), parallel.shapes_of_batches(stack)
    return PaperFeed(spec, epoch, in_memory, fetch, *shapes)


def on_paper(config: ConfigDict) -> Program:
    """The program of a run, with a PaperFeed."""
    config = config.copy_and_resolve_references()
    if config.teacher.weights:  # shapes need none
        teacher.given_statistics(config)
        config.teacher.update(weights="", weights_key="", mean=(), std=())
    parallel = make_parallel(config)
    return assemble(config, parallel, paper_feed(config, parallel))


def state_bytes(program: Program) -> int:
    """What a checkpoint holds."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.like))


def make_plan(config: ConfigDict) -> list[str]:
    """The plan, line by line.

    Raises:
      ValueError: as a run with this configuration would, but for a teacher's missing weights.
    """
    settings.check(config)
    weights = config.teacher.weights
    program = on_paper(config)
    feed = program.feed
    lines = about_run(config, program, feed)
    if program.teacher:
        lines.append(about_network("teacher", config.teacher.model, program.teacher, feed.spec))
        lines.append(f"teacher weights: {weights or 'none given, it is trained first'}")
    lines.append(about_network("student", config.student, program.student, feed.spec))
    if extra := count_params(program.like.params["method"]):
        lines.append(f"the methods learn {extra:,} parameters more")
    return lines + about_step(config, program, feed)


def about_run(config: ConfigDict, program: Program, feed: PaperFeed) -> list[str]:
    """Devices, batch, steps and what has to be read."""
    spec, devices = feed.spec, program.parallel.devices
    per_device = config.batch_size // len(devices)
    terms = ", ".join(f"{k} (weight {v.weight})" for k, v in config.terms.items()) or "none"
    micro = f" in {config.accumulate} micro-batches" if config.accumulate > 1 else ""
    total = config.epochs * feed.steps_per_epoch
    lines = [
        f"devices: {len(devices)} x {devices[0].device_kind} on {jax.process_count()} host(s),"
        f" {config.parallel}, {config.dtype}",
        f"batch: {config.batch_size} = {len(devices)} x {per_device}{micro}",
        f"data: {spec.name}, {spec.num_train:,} training and {spec.num_test:,} test images of"
        f" {'x'.join(map(str, spec.image_shape))}, {spec.num_classes} classes",
        f"methods: {terms}; cross-entropy {config.ce_weight}",
        f"steps: {config.epochs} epochs x {feed.steps_per_epoch:,} = {total:,}; learning rate"
        f" {float(program.lr(0)):.4g} at first, {max_lr(program, total):.4g} at most",
    ]
    speed = SPEED * len(devices)
    hours = config.epochs * spec.num_train / speed / 3600
    if feed.train_data:
        size = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in feed.train_data)
        read = f"nothing is read, {size / MIB:,.0f} MiB of images stay on every device"
    else:
        decoded = speed * int(np.prod(spec.image_shape))
        read = f"{decoded / 1e6:,.0f} MB/s of decoded images go to the devices"
        if spec.name == "imagenet2012":
            read += f", {speed * IMAGENET_BYTES / 1e6:,.0f} MB/s are read"
    return [*lines, f"at {SPEED:,} images/s a device: {hours:,.1f} hours, {read}"]


def max_lr(program: Program, total: int) -> float:
    """The highest learning rate of a run, of a thousand steps that are looked at."""
    return float(max(program.lr(step) for step in range(0, total, max(1, total // 1000))))


def about_network(role: str, name: str, network: Any, spec: DataSpec) -> str:
    """A network in numbers, of one image in evaluation."""
    image = Shape((1, *spec.image_shape), np.float32)
    variables = jax.eval_shape(network.module.init, jax.random.key(0), image)
    macs = count_macs(network.module, spec.image_shape)
    return (
        f"{role} {name}: {count_params(variables):,} parameters, {macs:,} MACs"
        f" = {2 * macs:,} FLOPs an image"
    )


def about_step(config: ConfigDict, program: Program, feed: PaperFeed) -> list[str]:
    """Compiles the step; what XLA says of its memory and its operations."""
    master = ()
    if program.teacher:
        image = Shape((1, *feed.spec.image_shape), np.float32)
        master = jax.eval_shape(program.teacher.module.init, jax.random.key(0), image)
    state, master = program.parallel.shapes((program.like, master))
    number = Shape((), np.int32)
    began = time.monotonic()
    compiled = program.dispatch.lower(
        state, master, feed.train_data, feed.stack, number, number, number
    ).compile()
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
    # XLA counts the body of a loop once: one step of a dispatch, one micro-batch of a step.
    counted = config.batch_size // len(program.parallel.devices) // config.accumulate
    return [
        f"compiled in {seconds:.0f} s, {program.steps_per_dispatch} step(s) a dispatch",
        f"memory: {peak / GIB:.2f} GiB a device ({memory.temp_size_in_bytes / GIB:.2f} of it"
        f" while a step runs); a checkpoint is {state_bytes(program) / MIB:.0f} MiB",
        f"XLA counts {flops / counted:,.0f} FLOPs an image of a step",
    ]
