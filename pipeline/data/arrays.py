"""The user's images in a NumPy file: ``--data FILE.npz``.

``x`` has the images, uint8 ``[N, H, W]``, ``[N, H, W, 1]`` (both grey) or ``[N, H, W, 3]`` (RGB). ``y`` has their
classes, N integers or strings. ``x_val`` and ``y_val``, ``x_test`` and ``y_test`` are optional. So are ``group``,
``group_val`` and ``group_test``, the group of each image. The names with ``_train`` are other names of ``x``, ``y`` and
``group``.
"""

import hashlib
import itertools
import math
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.errors import InputError
from kdedge.files import cache_dir, disk_errors, file_stamp
from kdedge.image_cache import IN_MEMORY, PLACE, locked, require_space
from kdedge.images import Overview, image_of, overview_pixels
from kdedge.pipeline.data.class_folders import class_name, is_label, log_once
from kdedge.pipeline.data.items import Item
from kdedge.pipeline.data.parts import Listed, Parts
from kdedge.progress import log

__all__ = ["list_arrays", "read_array", "read_texts", "reading"]

_EXPECTED = (
    "expected x (uint8 images [N, H, W], [N, H, W, 1] or [N, H, W, 3]) and y (N integers or strings), and optionally "
    "x_val and y_val, x_test and y_test, and group, group_val and group_test (N integers or strings)"
)
# Several threads ask for the same array.
_loading = threading.Lock()
_CHUNK = 1 << 20  # bytes that are read at a time


@dataclass(frozen=True)
class _Array:
    """An array of images in a file; its pixels are read when they are asked for."""

    file: Path
    key: str
    shape: tuple[int, ...]
    stamp: tuple[int, int]

    def images(self) -> NDArray[np.uint8]:
        """Return all images.

        Raises:
            InputError: The file has changed or is damaged, or memory is short.
        """
        with _loading:
            return _load(self)

    def digests(self) -> list[bytes]:
        """Return the SHA-256 of the shape and the pixels of each image."""
        return _digests(self)


@lru_cache(maxsize=1)
def _load(array: _Array) -> NDArray[np.uint8]:
    """Read an array into memory, or map it if it is large: a compressed one is unpacked into the cache for it."""
    with reading(array.file):
        changed = file_stamp(array.file) != array.stamp
    if changed:
        raise InputError(f"{array.file} has changed", "leave the file as it is while kdedge runs")
    if math.prod(array.shape) <= IN_MEMORY:
        return read_array(array.file, array.key)
    with reading(array.file), zipfile.ZipFile(array.file) as archive:
        member = archive.getinfo(f"{array.key}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return _unpacked(array, archive, member)
        with archive.open(member) as stream:
            shape, fortran, dtype = _header(stream)
            header_bytes = stream.tell()
            while stream.read(_CHUNK):  # the end of the member compares its CRC
                pass
        with array.file.open("rb") as file:
            file.seek(member.header_offset + 26)
            start = file.tell() + 4 + sum(struct.unpack("<2H", file.read(4)))  # lengths of the name and the extra field
        return np.memmap(array.file, dtype, "r", start + header_bytes, shape, "F" if fortran else "C")


def _unpacked(array: _Array, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """Return a compressed array from the cache, unpacked unless the CRC of the file there is that of the array."""
    name = hashlib.sha256(repr((array.file.resolve(), *array.stamp, array.key)).encode()).hexdigest()[:32]
    path = cache_dir() / "images" / f"{name}.unpacked.npy"
    with disk_errors(path, PLACE), locked(path):
        if not path.exists() or _crc(path) != member.CRC:
            require_space(path.parent, member.file_size, f"the array {array.key} of {array.file} needs")
            log(f"unpacking {array.key} of {array.file} into {path} ({member.file_size / 1e9:.1f} GB)")
            with path.open("wb") as target, archive.open(member) as stream:
                shutil.copyfileobj(stream, target, _CHUNK)
        mapped: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")
        return mapped


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            crc = zlib.crc32(data, crc)
    return crc


@cache
def _digests(array: _Array) -> list[bytes]:
    shape = repr(array.shape[1:]).encode()
    return [hashlib.sha256(shape + image.tobytes()).digest() for image in array.images()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ArrayItem(Item):
    """One image of an array."""

    array: _Array
    index: int

    def check(self) -> None:
        """Do nothing: the shape of the array was checked."""

    def check_pixels(self) -> None:
        """Read the array."""
        self.array.images()

    def overview(self, size: tuple[int, int]) -> Overview:
        """Return the contents of the image, with a thumbnail of this width and height."""
        return overview_pixels(self.array.images()[self.index], size)

    def convert(self, convert: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the pixels that a function makes of the image in RGB."""
        image = image_of(self.array.images()[self.index])
        return convert(image if image.mode == "RGB" else image.convert("RGB"))

    def is_grey(self) -> bool:
        """Return whether red, green and blue are equal in every pixel."""
        pixels = self.array.images()[self.index]
        return self.array.shape[3:] != (3,) or bool((pixels == pixels[..., :1]).all())

    def digest(self) -> bytes:
        """Return the SHA-256 of shape and pixels."""
        return self.array.digests()[self.index]


def list_arrays(file: Path) -> Listed:
    """List the images of a NumPy file without reading a pixel.

    Raises:
        InputError: The file cannot be read, or an array is missing or not as expected.
    """
    if not file.is_file():
        raise InputError(f"the data file {file} {'is not a file' if file.exists() else 'does not exist'}", _EXPECTED)
    with reading(file), zipfile.ZipFile(file) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
    suffixes = {"train": "_train" if "x_train" in keys else "", "val": "_val", "test": "_test"}
    # Files with x_train may call its groups group or group_train.
    group_keys = {part: f"group{suffix}" for part, suffix in suffixes.items() if f"group{suffix}" in keys}
    if "group" in keys:
        group_keys["train"] = "group"
    known = {*group_keys.values(), *(letter + suffix for suffix in suffixes.values() for letter in "xy")}
    labels = {part: read_texts(file, f"y{suffix}") for part, suffix in suffixes.items() if f"y{suffix}" in keys}
    images = {part: _array(file, f"x{suffix}") for part, suffix in suffixes.items() if f"x{suffix}" in keys}
    if not labels.keys() & {"train", "test"} or labels.keys() != images.keys():
        raise InputError(f"{file} has the arrays {', '.join(keys) or '(none)'}", _EXPECTED)
    if unused := [key for key in keys if key not in known]:
        log_once(f"{file}: ignoring the arrays {', '.join(unused)}")
    groups = {part: read_texts(file, key) for part, key in group_keys.items() if part in labels}
    _check_groups(file, groups, group_keys)
    if "train" not in labels:
        labels.pop("val", None)
    first = "train" if "train" in labels else "test"
    names = list(dict.fromkeys(labels[first]))
    names.sort(key=int if _is_numeric(names) else str)
    parts: Parts = {}
    for part, texts in labels.items():
        array, suffix = images[part], suffixes[part]
        _check_length(file, f"y{suffix}", len(texts), array)
        if part in groups:
            _check_length(file, group_keys[part], len(groups[part]), array)
        if other := [(index, text) for index, text in enumerate(texts) if text not in names]:
            index, text = other[0]
            raise InputError(f"y{suffix}[{index}] of {file} is {text}, a class that y has not", _EXPECTED)
        indices = {name: label for label, name in enumerate(names)}
        parts[part] = [
            _ArrayItem(
                file, indices[text], name := f"{array.key}[{index}]", name,
                groups[part][index] if part in groups else "", array=array, index=index,
            )
            for index, text in enumerate(texts)
        ]  # fmt: skip
    return Listed("arrays", file, tuple(names), parts, len(images) > 1 or "test" in images, _EXPECTED)


def _check_groups(file: Path, groups: Mapping[str, Sequence[str]], keys: Mapping[str, str]) -> None:
    """Refuse a group in two parts."""
    for one, other in itertools.combinations(groups, 2):
        if common := sorted({*groups[one]} & {*groups[other]} - {""}):
            raise InputError(f"the group {common[0]} of {file} is in {keys[one]} and in {keys[other]}", _EXPECTED)


def _check_length(file: Path, key: str, length: int, array: _Array) -> None:
    if length != array.shape[0]:
        raise InputError(
            f"{key} of {file} has {length:,} values for {array.shape[0]:,} images in {array.key}", _EXPECTED
        )


def _is_numeric(names: list[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() and name.isascii() for name in names)


def _array(file: Path, key: str) -> _Array:
    """Return an array of images; reads its header only."""
    with reading(file), zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as stream:
        shape, _, dtype = _header(stream)
        stamp = file_stamp(file)
    if dtype != np.uint8 or len(shape) not in {3, 4} or shape[3:] not in {(), (1,), (3,)} or 0 in shape:
        raise InputError(f"{key} of {file} is {dtype} {list(shape)}", _EXPECTED)
    return _Array(file, key, shape, stamp)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and type of an array in NumPy's format."""
    newer = np.lib.format.read_magic(stream) > (1, 0)
    read_header = np.lib.format.read_array_header_2_0 if newer else np.lib.format.read_array_header_1_0
    return read_header(stream)


def read_texts(file: Path, key: str, expected: str = _EXPECTED) -> list[str]:
    """Return classes or groups as texts; ``expected`` is the hint of errors."""
    values = read_array(file, key, expected)
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise InputError(f"{key} of {file} is {values.dtype} {list(values.shape)}", expected)
    with reading(file, expected):
        texts = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)
    classes = list(map(class_name, texts.tolist()))
    for index, name in enumerate(classes if key.startswith("y") else ()):
        if not name or not is_label(name):
            raise InputError(f"{key}[{index}] of {file} is {name!r}, which cannot be a label", expected)
    return classes


def read_array(file: Path, key: str, expected: str = _EXPECTED) -> NDArray[Any]:
    """Return an array of a NumPy file; ``expected`` is the hint of errors.

    Raises:
        InputError: The file cannot be read, or lacks the array.
    """
    with reading(file, expected), np.load(file, allow_pickle=False) as arrays:
        return np.asarray(arrays[key])


@contextmanager
def reading(file: Path, expected: str = _EXPECTED) -> Iterator[None]:
    """Raise what goes wrong in reading a file as an InputError."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot read the data file {file}: {' '.join(reason.split())}", expected) from error
