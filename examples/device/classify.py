"""Names what is in pictures: python classify.py student_int8.tflite PICTURE...

pip install ai-edge-litert numpy pillow; labels.txt and preparation.json lie in the folder of the
student, where the export wrote them.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

Image.MAX_IMAGE_PIXELS = 2**29  # phones take photographs of 200 megapixels


def prepare(picture, plan):
    """The picture as the student saw pictures when it was tested: [H, W, 3] uint8.

    plan: preparation.json; [height, width] that the resized picture covers, and of the part kept.
    """
    with Image.open(picture) as image:
        try:
            turn = image.getexif().get(0x0112, 1)  # EXIF's orientation, 1..8
        except Exception:  # damaged
            turn = 1
        image.info.pop("transparency", None)
        pixels = np.asarray(image if image.mode[0] == "I" else image.convert("RGB"))
    if pixels.ndim == 2:  # 16 bits
        pixels = np.clip(pixels.astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    pixels = pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if turn in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")

    (cover_h, cover_w), (crop_h, crop_w) = plan["cover"], plan["crop"]
    width, height = image.size
    if cover_h * width >= cover_w * height:  # wider than what it has to cover
        width, height = cover_h * width // height, cover_h
    else:
        width, height = cover_w, cover_w * height // width
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - crop_w) / 2), round((height - crop_h) / 2)
    return np.asarray(image.crop((left, top, left + crop_w, top + crop_h)))


def main():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # older boards
        from tflite_runtime.interpreter import Interpreter

    if len(sys.argv) < 3:
        sys.exit(__doc__)
    student, *pictures = map(Path, sys.argv[1:])
    for name in ("labels.txt", "preparation.json"):
        if not (student.parent / name).exists():
            sys.exit(f"{name} is not beside {student}: copy the whole folder of a new export")
    labels = (student.parent / "labels.txt").read_text(encoding="utf-8").splitlines()
    plan = json.loads((student.parent / "preparation.json").read_text())
    interpreter = Interpreter(model_path=str(student), num_threads=4)
    interpreter.allocate_tensors()
    interpreter.invoke()  # the first time is slower
    (entry,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    for picture in pictures:
        try:
            image = prepare(picture, plan)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
            print(f"{picture}: cannot be read ({error})")
            continue
        interpreter.set_tensor(entry["index"], image[None])
        began = time.perf_counter()
        interpreter.invoke()
        milliseconds = 1e3 * (time.perf_counter() - began)
        p = np.exp(interpreter.get_tensor(out["index"])[0].astype(np.float64))
        best = (f"{labels[k]} {p[k] / p.sum():.1%}" for k in np.argsort(-p)[:3])
        print(f"{picture}: {', '.join(best)}  ({milliseconds:.1f} ms)")


if __name__ == "__main__":
    main()
