"""Result lines as the runner writes them."""

import json

from experiments import ledger, runs
from experiments.measure import CURVES

KD, AT = "digits:method=kd", "digits:method=at"


def line(text, seed, top1, role="student", protocol="quick", **more):
    run = runs.resolve(text, role, protocol, seed)
    teacher = {"model": "resnet20", "macs": 3, "top1": 99.0, "hash": "abc"}
    return {
        "hash": run.hash, "config": text, "role": role, "protocol": protocol, "seed": seed,
        "resolved": json.loads(json.dumps(run.config.to_dict())), "seconds": 10.0, "company": 1,
        "last": {"top1": top1}, "best": {"top1": top1 + 1}, "teacher": teacher,
        "areas": {"hard": 0.9, "macro": 0.99, "micro": 0.98}, "images_per_second": 5.0,
        "student": {"macs": 1, "params": 78042}, "unseen": None,
        "hardware": {"device": "cpu", "devices": 1, "cpus": 2},
        "history": {key: [top1] * run.config.epochs for key in CURVES},
        "roc": {}, "matrix": [], "class_names": [],
    } | more  # fmt: skip


def write(folder, *lines):
    for one in lines:
        ledger.append(folder / "digits.jsonl", one)
    return ledger.read(folder)
