"""Finds images that a data set holds more than once: with the same bytes, or with the same picture.

The same picture may be stored in another format, quality or size. Its difference hash (dHash) hardly changes: 64 bits,
one for each place in an 8 x 8 grid, set where the picture gets brighter to the right. Images whose hashes almost agree
are compared pixel by pixel, as thumbnails.
"""

import hashlib
import struct
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError
from kdedge.progress import track

__all__ = ["COPIES", "THUMBNAIL", "dhash", "digest", "find_copies", "near_pairs", "same", "union"]

THUMBNAIL = (18, 16)
"""Width and height in pixels of the thumbnails that are compared."""

COPIES = {
    "test_copies": "test {unit}s that are also training or validation {unit}s",
    "in_two_classes": "{unit}s with a copy in another class",
    "in_training": "repeated training and validation {unit}s",
    "in_test": "repeated test {unit}s",
}
"""The kinds of copies that `find_copies` returns."""

_MOST_BITS = 8  # of 64, in which the hashes of the same picture differ
_MOST_DIFFERENCE = 0.2  # between thumbnails of the same picture, relative to their contrast
_LEAST_CONTRAST = 4.0  # standard deviation of a channel; a blank image is like every other
_ROWS = 64  # hashes that are compared with all others at a time
_PAIRS = 4096  # thumbnails that are compared at a time
# SHA-256 of a file by device, inode, size and time. There may be millions, so a key is short.
_digests: dict[bytes, bytes] = {}


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, 32 bytes; an unchanged file is read once per process.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        stat = path.stat()
        key = struct.pack("QQQq", stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in _digests:
            with path.open("rb") as file:
                _digests[key] = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        message = f"cannot read the image {path}: {error.strerror or error}"
        raise InputError(message, "leave the folder as it is while kdedge runs") from error
    return _digests[key]


def same(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the indices of equal keys, in groups of at least two."""
    first: dict[Hashable, int] = {}
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        if (place := first.setdefault(key, index)) != index:
            groups.setdefault(place, [place]).append(index)
    return [groups[place] for place in sorted(groups)]


def dhash(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the difference hashes ``[N]`` of thumbnails ``[N, 16, 18, 3]``."""
    cells = thumbnails.mean(3, dtype=np.float32).reshape(-1, 8, 2, 9, 2).mean((2, 4))
    bits = np.diff(cells, axis=2) > 1  # one step of brightness: less is noise of a flat area
    return np.packbits(bits.reshape(-1, 64), axis=1).view(np.uint64)[:, 0]


def near_pairs(thumbnails: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return the pairs of images with the same picture, the lower index first; blank images have no pair.

    Every image is compared with every other: 60,000 take some seconds.

    Args:
        thumbnails: uint8 RGB, ``[N, 16, 18, 3]``.
    """
    contrast = np.array([thumbnail.std((0, 1)).mean() for thumbnail in thumbnails])
    images = np.flatnonzero(contrast >= _LEAST_CONTRAST)
    hashes, found = dhash(thumbnails[images]), []
    with track("comparing images", len(images)) as progress:
        for start in range(0, len(images), _ROWS):
            rows = hashes[start : start + _ROWS]
            close = np.bitwise_count(rows[:, None] ^ hashes[None, start:]) <= _MOST_BITS
            pairs = images[start + np.argwhere(np.triu(close, 1))]
            for first, second in (pairs[at : at + _PAIRS].T for at in range(0, len(pairs), _PAIRS)):
                differences = np.abs(thumbnails[first].astype(np.int16) - thumbnails[second]).mean((1, 2, 3))
                equal = differences <= _MOST_DIFFERENCE * np.minimum(contrast[first], contrast[second])
                found += list(zip(first[equal].tolist(), second[equal].tolist(), strict=True))
            progress.advance(len(rows))
    return found


def union(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of indices that pairs connect, each ascending."""
    leader: dict[int, int] = {}

    def find(index: int) -> int:
        while (above := leader.setdefault(index, index)) != index:
            index = leader[index] = leader[above]
        return index

    for pair in pairs:
        low, high = sorted(map(find, pair))
        leader[high] = low
    members = sorted(leader)
    return [[members[place] for place in group] for group in same(map(find, members))]


def find_copies(
    groups: Iterable[Sequence[int]], labels: Sequence[int] | NDArray[np.int64], test: Sequence[bool] | NDArray[np.bool_]
) -> dict[str, list[tuple[int, int]]]:
    """Return the copies of each kind of `COPIES`: one pair for each image that counts, the image and a copy of it.

    Args:
        groups: Indices of images that are copies of each other.
        labels: Class of each image, ``[N]``.
        test: Whether an image is a test image, ``[N]``.
    """
    copies: dict[str, list[tuple[int, int]]] = {kind: [] for kind in COPIES}
    for group in groups:
        tested, learned = [index for index in group if test[index]], [index for index in group if not test[index]]
        copies["in_training"] += [(index, learned[0]) for index in learned[1:]]
        copies["in_test"] += [(index, tested[0]) for index in tested[1:]]
        if learned:
            copies["test_copies"] += [(index, learned[0]) for index in tested]
        first = {labels[index]: index for index in reversed(group)}
        for index in group if len(first) > 1 else ():
            copies["in_two_classes"].append((index, next(first[label] for label in first if label != labels[index])))
    return copies
