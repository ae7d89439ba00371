"""How an image of any shape becomes a square of pixels: `--resize`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["resize_image", "size_text"]


def resize_image(image: Image.Image, size: int, mode: str = "squeeze") -> NDArray[np.uint8]:
    """Resize an RGB image of any shape to a square.

    Args:
        image: The image.
        size: Side length S of the result in pixels.
        mode: ``squeeze`` changes the aspect ratio; ``crop`` takes the largest square in the middle; ``pad`` makes the
            longer side S and repeats the outermost pixels along the shorter one. ``crop-SHARE`` makes the shorter side
            S / SHARE, then takes the middle, as torchvision and timm do. The filter is bilinear; ``crop-SHARE-bicubic``
            has another.

    Returns:
        [S, S, 3] uint8 RGB.
    """
    target = (size, size)
    if mode.startswith("crop-"):
        _, share, *bicubic = mode.split("-")
        shorter = int(size / float(share))
        width, height = (shorter * length // min(image.size) for length in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image.resize((width, height), Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + size, top + size)))
    if mode == "crop":
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    elif mode == "pad":
        longer = max(image.size)
        width, height = (max(1, (2 * length * size + longer) // (2 * longer)) for length in image.size)
        target = (width, height)
    pixels = np.asarray(image if image.size == target else image.resize(target, Image.Resampling.BILINEAR))
    if target == (size, size):
        return pixels
    around = [((size - length) // 2, (size - length + 1) // 2) for length in pixels.shape[:2]]
    return np.pad(pixels, [*around, (0, 0)], mode="edge")


def size_text(size: int, mode: str) -> str:
    """Return size and resize mode of square images, as part of a hash: only ``crop-SHARE`` changes their pixels."""
    return f"{size} {mode}" if mode.startswith("crop-") else str(size)
