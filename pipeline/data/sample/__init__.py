"""The sample: 4,000 training and 1,000 test images of CIFAR-10, part of this package.

Each part is one lossless WebP, a fifth smaller than PNG: a sheet of 32x32 tiles with ten columns. Image ``i`` is in row
``i // 10`` and column ``i % 10``, and the column is its class. ``experiments/make_sample.py`` writes the sheets and
prints the hashes.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.dataset import Split, keep_used
from kdedge.errors import InputError
from kdedge.image_cache import resize_images
from kdedge.inputs import InputSpec, image_input
from kdedge.pipeline.data.cifar10 import CLASS_NAMES
from kdedge.preprocessing import RESIZE_MODES
from kdedge.resizing import size_text

__all__ = ["SHA256", "Sample", "from_sheet", "open_sample", "to_sheet"]

SHA256 = {
    "train.webp": "2aabe9ebc4f7bdf31a5cf6a6ecb1e95827a4349c20d860017c5429c902344117",
    "test.webp": "87fa088b7d8551d921c749322a5712a1fc52574c00982759d0033ddd012a05d2",
}

_FOLDER = Path(__file__).resolve().parent
_SIZE = 32


@dataclass(frozen=True)
class Sample:
    """A small CIFAR-10: 400 training and 100 test images of each class, 32x32 before resizing."""

    image_size: int
    val_fraction: float = 0.1
    train_size: int = 0
    resize_mode: str = RESIZE_MODES[0]
    name: str = "sample"
    class_names: tuple[str, ...] = CLASS_NAMES

    @property
    def spec(self) -> InputSpec:
        """The input of models for these images."""
        return image_input(self.image_size, self.resize_mode)

    def train(self) -> Split:
        """Decode the training sheet and return the images that are used, see `Dataset.train`."""
        return self.decoded(keep_used(self.undecoded(), self.val_fraction, self.train_size))

    def undecoded(self) -> Split:
        """Return the training images before they are resized."""
        return self._decode("train.webp")

    def decoded(self, some: Split) -> Split:
        """Return images of `undecoded` in the size of this data set."""
        return replace(some, images=resize_images(some.images, self.image_size, self.resize_mode))

    def test(self) -> Split:
        """Decode the test sheet."""
        return self.decoded(self._decode("test.webp"))

    def test_counts(self) -> list[int]:
        """Return the number of test images of each class."""
        return [100] * len(CLASS_NAMES)

    def train_sha256(self) -> str:
        """Return a SHA-256 of the training sheet and the image size."""
        return self._fingerprint("train.webp")

    def test_sha256(self) -> str:
        """Return a SHA-256 of the test sheet and the image size."""
        return self._fingerprint("test.webp")

    def _decode(self, name: str) -> Split:
        with Image.open(io.BytesIO(_read(name)), formats=("WEBP",)) as image:
            images = from_sheet(np.asarray(image))
        labels = np.arange(len(images), dtype=np.int64) % len(CLASS_NAMES)
        return Split(images, labels, self.class_names)

    def _fingerprint(self, name: str) -> str:
        size = size_text(self.image_size, self.resize_mode)
        return hashlib.sha256(f"sample {size} {SHA256[name]}".encode()).hexdigest()


def open_sample(image_size: int, val_fraction: float = 0.1, train_size: int = 0) -> Sample:
    """Open the sample and check its files.

    Args:
        image_size: Side length in pixels to which the images are resized.
        val_fraction: Share of the training images held out for validation.
        train_size: Number of training images without the validation images (0: all).

    Raises:
        InputError: A file of the installed package is missing or was altered.
    """
    for name in SHA256:
        _read(name)
    return Sample(image_size, val_fraction, train_size)


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
