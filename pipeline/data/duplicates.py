"""Finds files with the same bytes: test images that are also training images, and images in two classes."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.errors import InputError

if TYPE_CHECKING:
    from kdedge.pipeline.data.items import Item

__all__ = ["copied_test_images", "digest", "in_two_classes"]


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, 32 bytes; an unchanged file is read once per process.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        stat = path.stat()
        return _digest_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError as error:
        message = f"cannot read the image {path}: {error.strerror or error}"
        raise InputError(message, "leave the folder as it is while kdedge runs") from error


@cache
def _digest_of(path: Path, *_: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def copied_test_images(learned: Sequence["Item"], test: Sequence["Item"]) -> list[tuple["Item", "Item"]]:
    """Return the test images that are copies of training or validation images, each with the first such image."""
    known: dict[bytes, Item] = {}
    for item in learned:
        known.setdefault(item.digest(), item)
    return [(item, known[item.digest()]) for item in test if item.digest() in known]


def in_two_classes(items: Sequence["Item"]) -> list[list["Item"]]:
    """Return the groups of images with the same bytes that are in more than one class."""
    by_digest: dict[bytes, list[Item]] = {}
    for item in items:
        by_digest.setdefault(item.digest(), []).append(item)
    return [group for group in by_digest.values() if len({item.label for item in group}) > 1]
