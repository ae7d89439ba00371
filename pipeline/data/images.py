"""From an image file of any kind to RGB pixels of one size, on all cores.

The one place that defines how images are converted: the EXIF orientation is applied, transparency is composited on
white, grey, palette and CMYK become RGB, 16-bit keeps the high byte, and a bilinear (antialiased) resize squeezes the
whole image into a square.
"""

import os
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import InputError
from pipeline.progress import track

__all__ = [
    "EXTENSIONS",
    "check_image",
    "check_pixels",
    "fill_images",
    "for_each",
    "preprocessing",
    "read_image",
    "resize_images",
]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})

# Named so that a renamed file never reaches decoders which run other programs (EPS calls Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

# What Pillow raises for damaged files, depending on the format and on where the damage is.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

# Pillow refuses images of twice `Image.MAX_IMAGE_PIXELS`, which is an error here; smaller ones are read, so there is
# nothing to warn of. Set once for the process, because threads share the filters.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Small enough for a smooth progress bar, large enough to hide the cost of handing work to a thread.
_CHUNK = 32


def preprocessing(size: int) -> dict[str, Any]:
    """Say what a deployed model expects and what `read_image` does, for those who have the model alone.

    Args:
        size: Side length S of the images in pixels.
    """
    return {
        "input": "pixels",
        "layout": "NHWC",
        "dtype": "uint8",
        "color": "RGB",
        "range": [0, 255],
        "size": size,
        "resize": "bilinear",
        "antialias": True,
        "keep_aspect": False,
        "exif_orientation": "applied",
        "transparency": "on white",
        "output": "logits",
    }


def check_image(path: Path) -> None:
    """Check the header (for PNG: every checksum) of an image file without decoding it.

    Raises:
        InputError: The file is missing, unreadable or no image of a known format.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.verify()
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def check_pixels(path: Path) -> None:
    """Check that `read_image` can read a file, and drop the pixels.

    Raises:
        InputError: As `read_image`.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # JPEG only: the whole file is decoded, but to an eighth of its size.
            image.draft(None, (1, 1))
            _to_rgb(image)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Decode an image file and resize it.

    Args:
        path: The file.
        size: Side length S of the result in pixels.

    Returns:
        Pixels, [S, S, 3] uint8 RGB.

    Raises:
        InputError: The file is missing, truncated, damaged or no image of a known format.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _resize(_to_rgb(image), size)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def resize_images(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize decoded images as `read_image` would.

    Args:
        images: [N, H, W, 3] uint8 RGB.
        size: Side length S of the result in pixels.

    Returns:
        [N, S, S, 3] uint8 RGB; ``images`` itself if they have that size.
    """
    if images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    fill_images(resized, lambda index: _resize(Image.fromarray(images[index]), size), "resizing images")
    return resized


def fill_images(target: NDArray[np.uint8], make: Callable[[int], NDArray[np.uint8]], title: str) -> None:
    """Set ``target[index] = make(index)`` for every index on a thread pool, showing the progress."""

    def work(index: int) -> None:
        target[index] = make(index)

    for_each(len(target), work, title)


def for_each(count: int, work: Callable[[int], None], title: str) -> None:
    """Call ``work(index)`` for every index below ``count`` on a thread pool, showing the progress.

    The first error in the order of the indices is raised and cancels what has not begun.
    """

    def chunk(start: int) -> int:
        stop = min(start + _CHUNK, count)
        for index in range(start, stop):
            work(index)
        return stop - start

    # Pillow releases the interpreter lock while it decodes and resizes, so threads are enough.
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, track(title, count) as progress:
        for done in pool.map(chunk, range(0, count, _CHUNK)):
            progress.advance(done)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as upright 8-bit RGB."""
    ImageOps.exif_transpose(image, in_place=True)  # a camera's image is large: one copy less
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range, expected 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit pixels have no known range, expected 8 or 16 bits")
        # Pillow's own conversion clips at 255, which turns 16-bit images white.
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize(image: Image.Image, size: int) -> NDArray[np.uint8]:
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _unreadable(path: Path, error: Exception) -> InputError:
    """Say in one line why a file is no usable image."""
    if isinstance(error, UnidentifiedImageError):
        reason = f"not an image in a known format ({', '.join(_FORMATS)})"
    else:
        reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot read the image {path}: {reason}", "replace or remove that file")
