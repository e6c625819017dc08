"""Runs a device file on images, one at a time on one thread, and measures time and memory.

    python -m atkd_jax.export.runtime FILE HEIGHT WIDTH ANSWER.npz < images

A separate process that imports only NumPy and the file's runtime, so that time and memory are those
of the file. Reads raw uint8 images from stdin until its end; writes `logits` [N, K], `seconds` [N]
and `memory`, the peak in bytes that loading and running added to the process (NaN without /proc).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]  # image [1, H, W, 3] uint8 -> logits [1, K] float32


def _tflite(litert: ModuleType, path: Path) -> Run:
    interpreter = litert.Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    return run


def _onnx(onnxruntime: ModuleType, path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"image": x})[0]


def _stablehlo(jax: ModuleType, path: Path) -> Run:
    from jax import export

    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda x: np.asarray(call(x))


RUNTIMES = {
    ".tflite": ("ai_edge_litert.interpreter", _tflite),
    ".onnx": ("onnxruntime", _onnx),
    ".stablehlo": ("jax", _stablehlo),
}


def _memory(what: str) -> float:
    """VmRSS or VmHWM, the current or peak memory of this process in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(what))


def main(file: str, height: str, width: str, answer: str) -> None:
    path = Path(file)
    name, load = RUNTIMES[path.suffix]
    module = importlib.import_module(name)
    before = _memory("VmRSS")
    run = load(module, path)
    logits, seconds = [], []
    shape = (1, int(height), int(width), 3)
    while raw := sys.stdin.buffer.read(shape[1] * shape[2] * 3):
        image = np.frombuffer(raw, np.uint8).reshape(shape)
        began = time.perf_counter()
        logits.append(run(image))
        seconds.append(time.perf_counter() - began)
    memory = _memory("VmHWM") - before
    np.savez(answer, logits=np.concatenate(logits), seconds=seconds, memory=memory)


if __name__ == "__main__":
    main(*sys.argv[1:])
