#!/usr/bin/env python3
"""Classify images with the model in this folder: needs numpy and onnxruntime (and Pillow for anything but .npy).

    python predict.py photo.jpg pixels.npy        # one JSON line per image; --fp32 uses the float model

In a program: Classifier(folder)(frame), where a frame is uint8 RGB [H, W, 3]. A .npy file holds [S, S, 3] or
[N, S, S, 3]; for a grey model also [H, W] or one channel. Runs from Python 3.8, numpy 1.21 and Pillow 9.1 on.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no others: decoding EPS would run Ghostscript
MAX_PIXELS = 100_000_000  # 400 MB, with transparency 1.2 GB; a larger JPEG is decoded at a fraction of its size


class Classifier:
    """The model of a bundle, opened once."""

    def __init__(self, folder: str | Path = FOLDER, model: str = "student.int8.onnx") -> None:
        import onnxruntime as ort

        self.labels = Path(folder, "labels.txt").read_text(encoding="utf-8").splitlines()
        settings = json.loads(Path(folder, "preprocessing.json").read_text(encoding="utf-8"))
        self.size, self.resize_mode = settings["size"], settings.get("resize_mode", "squeeze")
        self.channels = 1 if settings.get("color") == "grey" else 3
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = ort.InferenceSession(Path(folder, model).read_bytes(), options, ["CPUExecutionProvider"])

    def __call__(self, frames: Any) -> Any:
        """Return label, class index and probability of a frame, uint8 RGB [H, W, 3]; of a list of frames, a list."""
        if not isinstance(frames, np.ndarray) or frames.ndim == 4:
            return [self(np.asarray(frame)) for frame in frames]
        frames = frames[..., None] if frames.ndim == 2 and self.channels == 1 else frames
        if frames.dtype != np.uint8 or frames.ndim != 3 or frames.shape[2] not in (3, self.channels):
            raise ValueError(f"a frame is {frames.dtype} {list(frames.shape)}; expected uint8 [H, W, {self.channels}]")
        if frames.shape[:2] != (self.size, self.size):
            from PIL import Image

            frames = resize(Image.fromarray(frames.repeat(3 // frames.shape[2], 2)), self.size, self.resize_mode)
        if frames.shape[2] > self.channels:
            frames = (frames @ [19595, 38470, 7471] + 32768 >> 16)[..., None]  # Pillow's convert("L")
        logits = self.session.run(None, {"pixels": np.ascontiguousarray(frames[None], np.uint8)})[0][0]
        if not np.isfinite(logits).all() or len(logits) != len(self.labels):
            raise ValueError(f"the logits are NaN or infinite, or not one for each of {len(self.labels)} labels")
        exps, index = np.exp(logits - logits.max()), int(logits.argmax())
        return {"label": self.labels[index], "index": index, "probability": round(float(exps[index] / exps.sum()), 6)}


def load(path: Path, size: int, mode: str = "squeeze") -> Any:
    """Return the images of a file as uint8 RGB [N, size, size, 3], or a .npy file as it is."""
    if not path.is_file():
        raise ValueError("a folder; give its files: FOLDER/*" if path.is_dir() else "no regular file has this name")
    if path.suffix.lower() == ".npy":
        with np.errstate(over="ignore"):  # mapped, so that a header that claims terabytes allocates nothing
            pixels: Any = np.lib.format.open_memmap(path, mode="r")
        pixels = {2: pixels[None, ..., None], 3: pixels[None]}.get(pixels.ndim, pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:3] != (size, size) or not len(pixels):
            raise ValueError(f"{pixels.dtype} {list(pixels.shape)}; expected uint8 [N, {size}, {size}, 3]")
        return pixels
    return decode(path, size, mode)[None]


def decode(path: Path, size: int, mode: str = "squeeze") -> Any:
    """Return an image file as upright uint8 RGB [size, size, 3]. Of its metadata only the orientation is read."""
    try:
        from PIL import Image, JpegImagePlugin
    except ImportError:
        raise ValueError("reading images needs Pillow (pip install pillow); or give a .npy file") from None
    jpeg: Any = type("Jpeg", (JpegImagePlugin.JpegImageFile,), {"getexif": lambda self: Image.Exif()})
    with path.open("rb") as file:
        is_jpeg = file.read(3) == b"\xff\xd8\xff"
    heif = find_spec("pillow_heif") and __import__("pillow_heif.HeifImagePlugin")  # registers itself
    formats = FORMATS + ("AVIF",) * bool(find_spec("PIL._avif")) + ("HEIF",) * bool(heif)
    opened: Any = jpeg(path) if is_jpeg else Image.open(path, formats=formats)
    with opened as image:
        pixels = image.size[0] * image.size[1]
        factor = next((factor for factor in (1, 2, 4, 8) if pixels <= MAX_PIXELS * factor**2), 8)
        if factor > 1 and not image.draft(None, (image.size[0] // factor, image.size[1] // factor)):
            raise ValueError(f"{pixels / 1e6:.0f} megapixels, the limit is {MAX_PIXELS / 1e6:.0f} (JPEG: none)")
        tags = getattr(image, "tag_v2", None)  # of TIFF, where they are gone after decoding
        image.getexif = Image.Exif
        try:
            turn = 1 if tags is None else int(tags.get(0x0112, 1))
        except Exception:
            turn = 1
        image.load()
        turn = orientation(image.info) if tags is None else turn
        upright = image.transpose((0, 3, 1, 5, 4, 6, 2)[turn - 2]) if 2 <= turn <= 8 else image
        if upright.mode[0] in "IF":
            values = np.asarray(upright)
            if upright.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
                raise ValueError("float or 32-bit pixels have no known range, expected 8 or 16 bits")
            upright = Image.fromarray((values >> (8 if values.max() > 0xFF else 0)).astype(np.uint8))  # high byte
        alpha = (upright.palette.mode if upright.mode == "P" else upright.mode)[-1] in "aA"
        if alpha or "transparency" in upright.info:
            upright = upright if upright.mode == "RGBA" else upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return resize(upright if upright.mode == "RGB" else upright.convert("RGB"), size, mode)


def resize(image: Any, size: int, mode: str) -> Any:
    """Return an RGB image as uint8 [size, size, 3]: squeezed, its middle (crop), or with repeated edges (pad)."""
    shorter, longer, share = min(image.size), max(image.size), f"{mode}-".split("-")[1]  # crop-SHARE[-bicubic]
    left, top = ((side - shorter) // 2 for side in image.size)
    image = image.crop((left, top, left + shorter, top + shorter)) if mode == "crop" else image
    target = [max(1, (2 * side * size + longer) // (2 * longer)) if mode == "pad" else size for side in image.size]
    target = [int(size / float(share)) * side // shorter for side in image.size] if share else target
    left, top = (max(0, round((side - size) / 2)) for side in target)
    pixels = np.asarray(image.resize(target, 3 if "bicubic" in mode else 2))[top : top + size, left : left + size]
    return np.pad(pixels, [*(((size - n) // 2, (size - n + 1) // 2) for n in pixels.shape[:2]), (0, 0)], "edge")


def orientation(info: dict[Any, Any]) -> int:
    """Return the orientation in the EXIF block of an image: 1 to 8; 1 (upright) also for a damaged block."""
    try:
        exif = info.get("exif") or bytes.fromhex("".join(info.get("Raw profile type exif", "").split("\n")[3:]))
        while exif.startswith(b"Exif\0\0"):
            exif = exif[6:]
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (first,) = struct.unpack_from(order + "L", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        entries = (struct.unpack_from(order + "HHLH", exif, first + 2 + 12 * number) for number in range(count))
        return int(next((value if kind == 3 else 1 for tag, kind, _, value in entries if tag == 0x0112), 1))
    except (KeyError, ValueError, struct.error):
        return 1


def main() -> None:
    """Answer the files on the command line: a bad one is one line on stderr, and exit code 1 at the end."""
    parser = argparse.ArgumentParser(description="Classify images with the model in this folder.")
    parser.add_argument("files", nargs="+", type=Path, help="images, or .npy files of uint8 RGB pixels")
    parser.add_argument("--fp32", action="store_true", help="use the FP32 model instead of INT8")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of Pillow, about metadata
    try:
        classify, code = Classifier(model="student.onnx" if args.fp32 else "student.int8.onnx"), 0
    except Exception as error:  # onnxruntime's errors have no base of their own
        sys.exit(f"predict.py: {error}; copy the bundle again, or install a newer onnxruntime")
    for path in args.files:
        try:
            answers = classify(load(path, classify.size, classify.resize_mode))
        except Exception as error:  # of a damaged file, decoders raise almost anything
            text, answers, code = f"predict.py: {path}: {error}", [], 1
            print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr)
        for number, answer in enumerate(answers):
            print(json.dumps({"file": f"{path}[{number}]" if len(answers) > 1 else str(path), **answer}), flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
