"""Damaged images and damaged metadata: `fuzz` reads them as kdedge does and as the bundle's predict.py does.

    nice -n 19 python tests/fuzz_images.py 100000 [SEED]

Every read must end in pixels or in an `InputError`, and both readers must agree.
"""

import io
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.errors import InputError
from kdedge.export.bundle import standalone
from kdedge.images import check_image, check_pixels, read_image

ORIENTATION = 0x0112


def exif_block(rng: np.random.Generator, orientation: int) -> bytes:
    """Return an EXIF block with a good orientation among tags of random types, counts and values."""
    order = "<>"[rng.integers(2)]
    wild = [
        struct.pack(f"{order}HHLL", rng.choice(TAGS), rng.integers(0, 15), rng.choice(COUNTS), rng.integers(0, 1 << 32))
        for _ in range(rng.integers(0, 8))
    ]
    wild.insert(rng.integers(len(wild) + 1), struct.pack(f"{order}HHLHH", ORIENTATION, 3, 1, orientation, 0))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(wild)) + b"".join(wild) + rng.bytes(rng.integers(0, 40))


# Of resolution, software, copyright, the EXIF and GPS blocks, and any; counts that fit, overflow or are absurd.
TAGS = (0x011A, 0x0128, 0x0131, 0x8298, 0x8769, 0x8825, 0xA005, 0x0100, 0x9286)
COUNTS = (0, 1, 2, 3, 5, 1000, 1 << 31, (1 << 32) - 1)


def seeds(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Return (suffix, file) of tiny images in every format and many modes."""
    pixels = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey16 = rgba.convert("RGB"), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = exif_block(rng, 6)
    made = []
    for suffix, format_, image, options in (
        (".jpg", "JPEG", rgb, {"exif": exif}),
        (".jpg", "JPEG", rgb, {"progressive": True, "exif": exif}),
        (".jpg", "MPO", rgb, {"save_all": True, "append_images": [rgb]}),
        (".png", "PNG", rgba, {"exif": exif}),
        (".png", "PNG", rgb.quantize(7), {"transparency": 0}),
        (".png", "PNG", grey16, {}),
        (".png", "PNG", rgb, {"save_all": True, "append_images": [rgb]}),
        (".tif", "TIFF", rgb, {}),
        (".tif", "TIFF", grey16, {"compression": "tiff_lzw"}),
        (".tif", "TIFF", rgb, {"compression": "jpeg"}),
        (".tif", "TIFF", rgba.convert("CMYK"), {"compression": "packbits"}),
        (".tif", "TIFF", rgb.convert("1"), {"compression": "group4"}),
        (".tif", "TIFF", Image.fromarray(pixels[..., 0].astype(np.int32)), {}),
        (".webp", "WEBP", rgba, {"exif": exif}),
        (".webp", "WEBP", rgb, {"lossless": True}),
        (".gif", "GIF", rgb, {"save_all": True, "append_images": [rgb]}),
        (".bmp", "BMP", rgb, {}),
        (".bmp", "BMP", rgb.quantize(7), {}),
        (".ppm", "PPM", rgb, {}),
        (".pbm", "PPM", rgb.convert("1"), {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        made.append((suffix, buffer.getvalue()))
    return made


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Change, insert, remove or cut off some bytes, mostly near the beginning, where the headers are."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        span = len(damaged) if rng.random() < 0.5 else min(len(damaged), 200)
        place = int(rng.integers(span)) if span else 0
        kind = rng.integers(6)
        if kind <= 1:
            damaged[place : place + 1] = bytes([rng.choice((0, 1, 2, 127, 128, 254, 255, rng.integers(256)))])
        elif kind == 2:
            damaged[place : place + 4] = struct.pack("<L", rng.choice(COUNTS))
        elif kind == 3:
            damaged[place:place] = rng.bytes(rng.integers(1, 9))
        elif kind == 4:
            del damaged[place : place + rng.integers(1, 9)]
        elif rng.random() < 0.2:
            del damaged[place:]
    return bytes(damaged)


def fuzz(count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Read ``count`` damaged images; return how many were read and how many were refused.

    Raises:
        Exception: What a reader raised that it must not raise; the file is left in ``folder``.
    """
    rng, found = np.random.default_rng(seed), Counter[str]()
    originals = seeds(rng)
    for number in range(count):
        suffix, data = originals[number % len(originals)]
        path = folder / f"damaged{suffix}"
        path.write_bytes(mutate(rng, data))
        for check in (check_image, check_pixels):
            with suppress(InputError):
                check(path)
        pixels = outcome(partial(read_image, path, 8), InputError)
        alone = outcome(partial(standalone.decode, path, 8), Exception)
        assert np.array_equal(pixels, alone), f"{path}: read differently by predict.py"
        found["read" if len(pixels) else "refused"] += 1
    return found


def outcome(read: Callable[[], NDArray[np.uint8]], refusal: type[Exception]) -> NDArray[np.uint8]:
    """Return the pixels, or an empty array for a file that is refused."""
    try:
        return read()
    except refusal:
        return np.empty(0, np.uint8)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        try:
            print(fuzz(int(sys.argv[1]), Path(place), int(sys.argv[2]) if sys.argv[2:] else 0))
        except Exception:
            kept = Path(tempfile.mkdtemp())
            for file in Path(place).iterdir():
                file.rename(kept / file.name)
            print(f"kept: {kept}", file=sys.stderr)
            raise
