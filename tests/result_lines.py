"""Result lines as a worker writes them."""

import json

from experiments.queue import jobs
from experiments.results import store
from experiments.results.schema import CURVES, tested_epochs

KD, AT = "digits:method=kd", "digits:method=at"


def line(text, seed, top1, role="student", protocol="quick", **more):
    """A whole one, whose best epoch is the first that was tested: one percent above the last."""
    job = jobs.resolve(text, role, protocol, seed)
    resolved = json.loads(json.dumps(job.config.to_dict()))
    tested = tested_epochs(resolved)
    best, last = ({"epoch": n, "top1": x, "top5": 100.0, "loss": 1.0}
                  for n, x in ((tested[0], min(top1 + 1, 100)), (tested[-1], top1)))  # fmt: skip
    network = {"params": 78042, "macs": 1, "hash": "abc"}
    teacher = network | {"model": job.config.teacher.model, "macs": 3, "top1": 99.0}
    return {
        "hash": job.hash, "config": text, "role": role, "protocol": protocol, "seed": seed,
        "resolved": resolved, "seconds": 10.0, "company": 1, "last": last, "best": best,
        "teacher": teacher if resolved["terms"] else None,
        "areas": {"hard": 0.9, "macro": 0.99, "micro": 0.98}, "images_per_second": 5.0,
        "student": network | {"model": job.config.student}, "unseen": None,
        "hardware": {"device": "cpu", "devices": 1, "processes": 1, "cpus": 2},
        "versions": {"python": "3.11.7"}, "commit": "",
        "history": {key: [best["top1"]] + [top1] * (len(tested) - 1) if key == "test/top1"
                    else [1.0] * len(tested) for key in CURVES},
        "roc": {}, "matrix": [], "class_names": ["0", "1"],
    } | more  # fmt: skip


def write(folder, *lines):
    """Writes lines, whole or not, and reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "digits.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
    return store.read(folder)
