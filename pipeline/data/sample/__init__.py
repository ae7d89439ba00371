"""The sample: 4,000 training and 1,000 test images of CIFAR-10, part of this package.

Each part is one lossless WebP, a fifth smaller than PNG: a sheet of 32x32 tiles with ten columns. Image ``i`` is in row
``i // 10`` and column ``i % 10``, and the column is its class. ``experiments/make_sample.py`` writes the sheets and
prints the hashes.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.pipeline.data.cifar10 import CLASS_NAMES, Cifar10Images
from kdedge.preprocessing import RESIZE_MODES

__all__ = ["SHA256", "Sample", "from_sheet", "open_sample", "to_sheet"]

SHA256 = {
    "train.webp": "2aabe9ebc4f7bdf31a5cf6a6ecb1e95827a4349c20d860017c5429c902344117",
    "test.webp": "87fa088b7d8551d921c749322a5712a1fc52574c00982759d0033ddd012a05d2",
}

_FOLDER = Path(__file__).resolve().parent
_SIZE = 32


@dataclass(frozen=True)
class Sample(Cifar10Images):
    """A small CIFAR-10: 400 training and 100 test images of each class."""

    def train(self) -> Split:
        """Decode the training sheet."""
        return self.decoded(self.undecoded())

    def undecoded(self) -> Split:
        """Return the training images before they are resized."""
        return self._decode("train.webp")

    def test(self) -> Split:
        """Decode the test sheet."""
        return self.decoded(self._decode("test.webp"))

    def test_counts(self) -> list[int]:
        """Return the number of test images of each class."""
        return [100] * len(CLASS_NAMES)

    def train_sha256(self) -> str:
        """Return a SHA-256 of the training sheet and the image size."""
        return self.fingerprint(SHA256["train.webp"])

    def test_sha256(self) -> str:
        """Return a SHA-256 of the test sheet and the image size."""
        return self.fingerprint(SHA256["test.webp"])

    def _decode(self, name: str) -> Split:
        with Image.open(io.BytesIO(_read(name)), formats=("WEBP",)) as image:
            images = from_sheet(np.asarray(image))
        labels = np.arange(len(images), dtype=np.int64) % len(CLASS_NAMES)
        return Split(images, labels, self.class_names)


def open_sample(image_size: int, resize_mode: str = RESIZE_MODES[0]) -> Sample:
    """Open the sample and check its files.

    Args:
        image_size: Side length in pixels to which the images are resized.
        resize_mode: As of `kdedge.resizing.resize_image`.

    Raises:
        InputError: A file of the installed package is missing or was altered.
    """
    for name in SHA256:
        _read(name)
    return Sample(image_size, resize_mode, "sample")


def to_sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrange images as a sheet.

    Args:
        images: [N, 32, 32, 3] uint8 with N a multiple of 10.

    Returns:
        [N / 10 · 32, 320, 3] uint8.
    """
    rows = images.reshape(-1, len(CLASS_NAMES), _SIZE, _SIZE, 3)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1, len(CLASS_NAMES) * _SIZE, 3)


def from_sheet(sheet: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images of a sheet: the inverse of `to_sheet`."""
    rows = sheet.reshape(-1, _SIZE, len(CLASS_NAMES), _SIZE, 3)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1, _SIZE, _SIZE, 3)


def _read(name: str) -> bytes:
    """Read a file of the sample and check its hash."""
    path = _FOLDER / name
    hint = "restore this file from the source, or install kdedge again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the sample file {path} cannot be read: {error.strerror or error}", hint) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[name]:
        raise InputError(f"the sample file {path} was altered: SHA-256 {digest}, expected {SHA256[name]}", hint)
    return data
