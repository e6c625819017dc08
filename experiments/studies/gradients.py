"""What an attention term does beside KD: its gradient during training, and the maps at the end.

    python -m experiments.studies.gradients --weights=FOLDER [--images=5000] [--steps=1562]

The published ResNet-20 (resnet20-12fca82f.th in FOLDER) teaches ResNet-8s on CIFAR-10. On one batch
of 256 training images, at every PROBE steps: the norm of the attention term's gradient with respect
to the student's parameters over that of the other terms, and the cosine between it and the
gradients of the hard labels (CE) and of the softened logits (KL). At the end, on 2,000 test images:
how far the student's attention maps are from the teacher's (`self_attention`, 1 = uniform maps), by
stage, beside top-1. Writes studies/gradients.json and figures/study-gradients.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from atkd_jax.command_line import Parser, entry_point, number
from atkd_jax.methods import create
from atkd_jax.methods.base import Context, Extras
from atkd_jax.nn.collectives import Collectives
from atkd_jax.runtime.devices import Parallel
from atkd_jax.training import from_config, setup, teachers
from atkd_jax.training.evaluate import make_evaluate
from atkd_jax.training.loader import make_loader
from atkd_jax.training.objective import Objective, Term
from atkd_jax.training.step import SharedTeacherStep, TrainStep, student_variables
from atkd_jax.types import Array, Batch, PyTree, TrainState
from configs import few_images
from experiments import arguments
from experiments.queue.worker import published_teacher
from experiments.report.figures import COLOURS, save

HERE = Path(__file__).parent
METHODS = ("none", "kd", "at_kd", "atkd_poster", "atkd", "fitnet_kd", "nst_kd", "aft")
PROBE, PROBED, COMPARED = 71, 256, 2000


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--weights", type=arguments.folder, required=True)
    parser.add_argument("--images", type=number(64, 50_000), default=5000)
    parser.add_argument("--steps", type=number(PROBE, 10**6), default=1562)
    parser.add_argument("--out", type=arguments.writable, default=HERE.parent)
    args = parser.parse_args()
    found = measure(args)
    path = args.out / "studies" / "gradients.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{path}, {draw(found, args.out / 'figures' / 'study-gradients.svg')}")


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Trains all students under one teacher: {method: {name of a number: its values}}."""
    options = f"images={args.images},steps={args.steps}"
    configs = [few_images.get_config(f"method={m},{options}") for m in METHODS]
    for config in configs:
        weights = published_teacher("cifar10", config.teacher.model, args.weights)
        config.teacher.weights = str(weights)
    lead, parallel = configs[1], Parallel("none")
    loader = make_loader(from_config.source(lead), parallel, lead.batch_size, lead.seed)
    setups = [setup.make_setup(c, parallel, loader.info, loader.steps_per_epoch) for c in configs]
    steps = tuple(one.step for one in setups)
    teacher = teachers.describe(lead, loader.info)
    variables = teachers.load(lead, teacher, loader.info, Path(lead.teacher.weights))
    states = tuple(parallel.init(one.init_state, np.int32(0)) for one in setups)
    take = setup.compile_steps(SharedTeacherStep(steps), parallel, loader.fetch)
    probes = [make_probe(step, variables) for step in steps]
    batch = Batch(loader.source.train.image[:PROBED], loader.source.train.label[:PROBED], None)
    found: dict[str, dict[str, list[float]]] = {m: {"step": []} for m in METHODS}

    step, due = 0, 0
    for epoch in range(lead.epochs):
        for stack, start, end in loader.train(epoch, 0, parallel.steps_per_call):
            if step >= due:
                due = step + PROBE
                for method, probe, state in zip(METHODS, probes, states, strict=True):
                    found[method]["step"].append(step)
                    for key, value in probe(state, batch).items():
                        found[method].setdefault(key, []).append(float(value))
            out = take(states, variables, loader.train_data, stack, start, end, np.int32(0))
            states, step = out[0], step + end - start
        print(f"epoch {epoch + 1} of {lead.epochs}", flush=True)

    evaluate = make_evaluate(steps[0].student, loader, parallel)
    image = loader.source.test.image[:COMPARED]
    for method, one, state in zip(METHODS, steps, states, strict=True):
        found[method]["top1"] = [evaluate(student_variables(state))["top1"]]
        found[method]["maps"] = map_errors(
            one, lambda part: teacher.infer(variables, part), state, image
        )
    return found


def map_errors(
    step: TrainStep, teacher: Callable, state: TrainState, image: np.ndarray
) -> list[float]:
    """The relative error of the attention maps at every stage, on test images."""
    method = create("self_attention")

    @jax.jit
    def levels(part: Array) -> dict[str, Array]:
        part = part.astype(jnp.float32) / 255
        s = step.student.infer(student_variables(state), part)
        return method.loss(Extras(), teacher(part), s, None, None).metrics

    parts = [levels(part) for part in np.split(image, 10)]
    return [float(np.mean([part[key] for part in parts])) for key in sorted(parts[0])]


def make_probe(step: TrainStep, variables: PyTree) -> Callable[[TrainState, Batch], dict]:
    """(state, uint8 batch) -> norms and cosines of the gradients of a step's terms."""
    whole = step.objective
    terms = dict(whole.terms)
    kd = {name: term for name, term in terms.items() if name == "kd"}
    if "aft" in terms:  # has terms of its own
        kd = {"aft": Term(1.0, dataclasses.replace(terms["aft"].method, beta=0.0))}
    logits = Objective(whole.ce_weight, kd)
    only = {"ce": Objective(1.0), "kl": Objective(0.0, {"kd": Term(1.0, create("kd"))})}

    @jax.jit
    def probe(state: TrainState, batch: Batch) -> dict[str, Array]:
        batch = batch._replace(image=batch.image.astype(jnp.float32) / 255)
        t = step.teacher.infer(variables, batch.image) if step.teacher else None

        def gradient(objective: Objective) -> Array:
            def loss(params: PyTree) -> Array:
                s, _ = step.student.apply(
                    {"params": params, "batch_stats": state.batch_stats},
                    batch.image,
                    train=True,
                    mutable=["batch_stats"],
                )
                names = objective.terms
                extras = Extras(
                    {n: state.params["method"].get(n, {}) for n in names},
                    {n: state.method_state.get(n, {}) for n in names},
                )
                rng = jax.random.key(0)
                ctx = Context(rng, state.step, step.steps_per_epoch, Collectives())
                return objective.loss(extras, t, s, batch, ctx)[0]

            leaves = jax.tree.leaves(jax.grad(loss)(state.params["student"]))
            return jnp.concatenate([leaf.ravel() for leaf in leaves])

        if whole.terms.keys() <= {"kd"}:  # no attention term
            return {}
        others, ce, kl = gradient(logits), gradient(only["ce"]), gradient(only["kl"])
        term = gradient(whole) - others
        return {
            "share": jnp.linalg.norm(term) / jnp.linalg.norm(others),
            "cosine_ce": cosine(term, ce),
            "cosine_kl": cosine(term, kl),
        }

    return probe


def cosine(a: Array, b: Array) -> Array:
    """Of two vectors; 0 if one of them is."""
    norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.where(norms > 0, a @ b / jnp.where(norms > 0, norms, 1), 0)


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> Path:
    """Share and cosine over the steps, and top-1 over the error of the maps."""
    figure = Figure(figsize=(12, 3.8))
    share, angle, maps = figure.subplots(1, 3)
    for colour, (method, numbers) in zip(COLOURS[::2], found.items(), strict=False):
        if "share" in numbers:
            begun = [i for i, part in enumerate(numbers["share"]) if part > 0]  # after a warm-up
            for axes, key in ((share, "share"), (angle, "cosine_kl")):
                values = [numbers[key][i] for i in begun]
                axes.plot([numbers["step"][i] for i in begun], values, color=colour, label=method)
        error, top1 = np.mean(numbers["maps"]), numbers["top1"][0]
        maps.plot(error, top1, "o", color=colour)
        maps.annotate(method, (error, top1), fontsize=8, xytext=(4, 3), textcoords="offset points")
    share.set_yscale("log")
    share.set_title("norm of the term's gradient / of the others'", fontsize=10)
    angle.axhline(0, color="0.6", lw=1)
    angle.set_title("cosine of the term's and KL's gradient", fontsize=10)
    maps.margins(x=0.15)
    maps.set_title("top-1, and distance of the maps", fontsize=10)
    maps.set_xlabel("relative error of the attention maps, mean")
    maps.set_ylabel("top-1, %")
    for axes in (share, angle):
        axes.set_xlabel("step")
    share.legend(fontsize=8)
    for axes in (share, angle, maps):
        axes.grid(alpha=0.3)
    return save(figure, path)


if __name__ == "__main__":
    with entry_point("stopped"):
        main()
