#!/usr/bin/env python3
"""Classify images with the model in this folder: needs numpy and onnxruntime (and Pillow for anything but .npy).

    python predict.py photo.jpg pixels.npy        # one JSON line per image; --fp32 uses the float model

A .npy file holds uint8 RGB pixels, [S, S, 3] or [N, S, S, 3].
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no others: decoding EPS would run Ghostscript


def load(path: Path, size: int) -> Any:
    """Return the images of a file as uint8 RGB [N, size, size, 3]."""
    import numpy as np

    if path.suffix.lower() == ".npy":
        with np.errstate(over="ignore"):  # mapped, so that a header that claims terabytes allocates nothing
            pixels: Any = np.lib.format.open_memmap(path, mode="r")
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3) or not len(pixels):
            raise ValueError(f"{pixels.dtype} {list(pixels.shape)}; expected uint8 [N, {size}, {size}, 3]")
        return pixels
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError("reading images needs Pillow (pip install pillow); or give a .npy file") from None
    with Image.open(path, formats=FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode[0] in "IF":
            values = np.asarray(upright)
            if upright.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
                raise ValueError("float or 32-bit pixels have no known range, expected 8 or 16 bits")
            upright = Image.fromarray((values >> 8).astype(np.uint8))  # 16 bits: keep the high byte
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        return np.asarray(upright.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))[None]


def predict(paths: list[Path], model: str) -> Iterator[dict[str, Any]]:
    """Yield file, label, class index and probability of every image."""
    import numpy as np
    import onnxruntime

    labels = (FOLDER / "labels.txt").read_text(encoding="utf-8").splitlines()
    size = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))["size"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession((FOLDER / model).read_bytes(), options, providers=["CPUExecutionProvider"])
    for path in paths:
        try:
            images = load(path, size)
        except Exception as error:  # of a damaged file, decoders raise almost anything
            raise SystemExit(f"predict.py: {path}: {error}") from None
        for number, image in enumerate(images):
            logits = session.run(None, {"pixels": image[None]})[0][0]
            exps, index = np.exp(logits - logits.max()), int(logits.argmax())
            name = str(path) if len(images) == 1 else f"{path}[{number}]"
            share = round(float(exps[index] / exps.sum()), 6)
            yield {"file": name, "label": labels[index], "index": index, "probability": share}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify images with the model in this folder.")
    parser.add_argument("files", nargs="+", type=Path, help="images, or .npy files of uint8 RGB pixels")
    parser.add_argument("--fp32", action="store_true", help="use the FP32 model instead of INT8")
    args = parser.parse_args()
    try:
        for line in predict(args.files, "student.onnx" if args.fp32 else "student.int8.onnx"):
            print(json.dumps(line), flush=True)
    except (ImportError, OSError, KeyError, ValueError) as problem:
        sys.exit(f"predict.py: {problem}")
