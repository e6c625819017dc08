"""Names what is in a picture, with an exported student.

    pip install ai-edge-litert numpy pillow
    python classify.py student_int8.tflite PICTURE...

labels.txt is read from the folder of the student. Nothing else is needed: no JAX, no TensorFlow.
"""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # older boards
    from tflite_runtime.interpreter import Interpreter

if len(sys.argv) < 3:
    sys.exit("usage: python classify.py STUDENT.tflite PICTURE...")
student, *pictures = map(Path, sys.argv[1:])
labels = (student.parent / "labels.txt").read_text().splitlines()
interpreter = Interpreter(model_path=str(student), num_threads=4)
interpreter.allocate_tensors()
interpreter.invoke()  # the first time is slower
(entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()
_, height, width, _ = entry["shape"]

for picture in pictures:
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)  # the centre
    interpreter.set_tensor(entry["index"], np.asarray(image, np.uint8)[None])
    began = time.perf_counter()
    interpreter.invoke()
    milliseconds = 1e3 * (time.perf_counter() - began)
    logits = interpreter.get_tensor(exit_["index"])[0]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    best = ", ".join(f"{labels[k]} {p[k]:.1%}" for k in np.argsort(-p)[:3])
    print(f"{picture}: {best}  ({milliseconds:.1f} ms)")
