"""CIFAR-10 from a folder in one of its two official formats.

The formats are ``cifar-10-batches-bin`` (a label byte and 3x1024 bytes of R, G and B per image) and
``cifar-10-batches-py`` (pickled batches). The official MD5 of every file is checked when the folder is opened and again
before its bytes are decoded, so an altered pickle is never loaded. Source: Krizhevsky, "Learning Multiple Layers of
Features from Tiny Images", 2009.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.image_cache import resize_images
from kdedge.inputs import InputSpec, image_input
from kdedge.preprocessing import RESIZE_MODES
from kdedge.resizing import size_text

__all__ = [
    "BINARY",
    "CLASS_NAMES",
    "PICKLE",
    "Cifar10",
    "Cifar10Images",
    "Format",
    "find_damage",
    "md5_hex",
    "open_cifar10",
]

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIZE = 32
_HINT = "give a complete copy with --data-dir, or leave it out to fetch one, or use `--data sample`"


@dataclass(frozen=True)
class Format:
    """One official format of the data set.

    Attributes:
        folder: Name of the folder in the official archive.
        train_md5: MD5 of each file with training images, by name, in order.
        test_md5: MD5 of each file with test images, by name.
        decode: Returns the images and labels of the bytes of one file.
    """

    folder: str
    train_md5: dict[str, str]
    test_md5: dict[str, str]
    decode: Callable[[bytes], Split]

    @property
    def md5(self) -> dict[str, str]:
        """MD5 of every file, by name."""
        return self.train_md5 | self.test_md5


def _decode_binary(data: bytes) -> Split:
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * _SIZE * _SIZE)
    return _from_planes(rows[:, 1:], rows[:, 0].astype(np.int64))


def _decode_pickle(data: bytes) -> Split:
    batch = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    return _from_planes(batch[b"data"], np.asarray(batch[b"labels"], np.int64))


def _from_planes(planes: NDArray[np.uint8], labels: NDArray[np.int64]) -> Split:
    """Return images ``[N, 32, 32, 3]`` from colour planes ``[N, 3072] uint8``."""
    return Split(np.ascontiguousarray(planes.reshape(-1, 3, _SIZE, _SIZE).transpose(0, 2, 3, 1)), labels)


class _BatchUnpickler(pickle.Unpickler):
    """Reads the official batches; it builds NumPy arrays and refuses all other objects."""

    # The function is private to NumPy and has moved between versions; an array refers to it.
    _KNOWN: dict[tuple[str, str], Any] = {  # noqa: RUF012 (never changed)
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._KNOWN[module_name, global_name]
        except KeyError:
            message = f"{module_name}.{global_name} has no place in a CIFAR-10 batch"
            raise pickle.UnpicklingError(message) from None


# MD5s of the binary files are computed from the official cifar-10-binary.tar.gz; those of the pickled files are
# published in torchvision (datasets/cifar.py).
BINARY = Format(
    "cifar-10-batches-bin",
    {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    },
    {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
    _decode_binary,
)
PICKLE = Format(
    "cifar-10-batches-py",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    {"test_batch": "40351d587109b95175f43aff81a1287e"},
    _decode_pickle,
)


@dataclass(frozen=True)
class Cifar10Images:
    """Images of the ten classes, 32x32 before resizing: all of them, or the sample in this package."""

    image_size: int
    resize_mode: str
    name: str
    class_names: tuple[str, ...] = field(default=CLASS_NAMES, init=False)

    @property
    def spec(self) -> InputSpec:
        """The input of models for these images."""
        return image_input(self.image_size, self.resize_mode)

    def decoded(self, some: Split) -> Split:
        """Return 32x32 images in the size of this data set."""
        return replace(some, images=resize_images(some.images, self.image_size, self.resize_mode))

    def fingerprint(self, files: str) -> str:
        """Return the SHA-256 of images that the hashes of their files decide, as 64 hexadecimal digits."""
        text = f"{self.name} {size_text(self.image_size, self.resize_mode)} {files}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Cifar10(Cifar10Images):
    """CIFAR-10: 50,000 training and 10,000 test images."""

    folder: Path
    format: Format

    def train(self) -> Split:
        """Decode the five training batches."""
        return self.decoded(self.undecoded())

    def undecoded(self) -> Split:
        """Return the training images before they are resized."""
        return self._read(self.format.train_md5)

    def test(self) -> Split:
        """Decode the test batch."""
        return self.decoded(self._read(self.format.test_md5))

    def test_counts(self) -> list[int]:
        """Return the number of test images of each class."""
        return [1000] * len(CLASS_NAMES)

    def train_sha256(self) -> str:
        """Return the SHA-256 of the training images, equal for both formats: their MD5s fix the same content."""
        return self.fingerprint(" ".join(BINARY.train_md5.values()))

    def test_sha256(self) -> str:
        """Return the SHA-256 of the test images, equal for both formats: their MD5s fix the same content."""
        return self.fingerprint(" ".join(BINARY.test_md5.values()))

    def _read(self, md5s: dict[str, str]) -> Split:
        batches = []
        for name, md5 in md5s.items():
            path = self.folder / name
            # Checked again, on the bytes to decode: the file may have changed since the folder was opened.
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} {_reason(error)}", _HINT) from error
            if md5_hex(data) != md5:
                raise InputError(f"{path} {_damaged(data, md5)}", _HINT)
            batches.append(self.format.decode(data))
        images = np.concatenate([batch.images for batch in batches])
        labels = np.concatenate([batch.labels for batch in batches])
        return Split(images, labels, self.class_names)


def open_cifar10(folder: Path, image_size: int, resize_mode: str = RESIZE_MODES[0]) -> Cifar10:
    """Open a folder with the files of CIFAR-10, or with the folder of an official archive.

    Args:
        folder: The folder.
        image_size: Side length in pixels to which the images are resized.
        resize_mode: As of `kdedge.resizing.resize_image`.

    Raises:
        InputError: The folder or a file in it is missing, truncated or altered.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"the CIFAR-10 folder {folder} {state}", _HINT)
    for form in (BINARY, PICKLE):
        for place in (folder, folder / form.folder):
            if any((place / name).exists() for name in form.md5):
                if damage := find_damage(place, form):
                    raise InputError(damage, _HINT)
                return Cifar10(image_size, resize_mode, "cifar10", place, form)
    raise InputError(
        f"{folder} has no CIFAR-10 files: expected {next(iter(BINARY.md5))} … test_batch.bin (binary format) "
        f"or {next(iter(PICKLE.md5))} … test_batch (Python format)",
        _HINT,
    )


def find_damage(folder: Path, form: Format) -> str:
    """Return the fault of the first bad file of a format, or an empty string if all are official."""
    for name, md5 in form.md5.items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            return f"{path} {_reason(error)}"
        if md5_hex(data) != md5:
            return f"{path} {_damaged(data, md5)}"
    return ""


def md5_hex(data: bytes | memoryview) -> str:
    """Return the MD5 of ``data`` as 32 hexadecimal digits: the checksum that the data set is published with."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _damaged(data: bytes, md5: str) -> str:
    return f"is truncated or altered: {len(data):,} bytes with MD5 {md5_hex(data)}, expected MD5 {md5}"


def _reason(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
