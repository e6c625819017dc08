"""Names what is in pictures: python classify.py student_int8.tflite PICTURE...

pip install ai-edge-litert numpy pillow; labels.txt lies in the folder of the student.
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
    sys.exit(__doc__)
student, *pictures = map(Path, sys.argv[1:])
labels = (student.parent / "labels.txt").read_text().splitlines()
interpreter = Interpreter(model_path=str(student), num_threads=4)
interpreter.allocate_tensors()
interpreter.invoke()  # the first time is slower
(entry,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
for picture in pictures:
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    image = ImageOps.fit(image, entry["shape"][[2, 1]])  # the centre, scaled
    interpreter.set_tensor(entry["index"], np.asarray(image, np.uint8)[None])
    began = time.perf_counter()
    interpreter.invoke()
    milliseconds = 1e3 * (time.perf_counter() - began)
    p = np.exp(interpreter.get_tensor(out["index"])[0].astype(np.float64))
    best = (f"{labels[k]} {p[k] / p.sum():.1%}" for k in np.argsort(-p)[:3])
    print(f"{picture}: {', '.join(best)}  ({milliseconds:.1f} ms)")
