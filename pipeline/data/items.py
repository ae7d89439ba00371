"""The images of a user's data set: files, or rows of an array or a table."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdedge.images import (
    Overview,
    UnreadableImageError,
    check_image,
    check_pixels,
    convert_image,
    is_grey,
    overview,
    unreadable,
)
from kdedge.pipeline.data.duplicates import digest
from kdedge.stored_image import ImageSource
from kdedge.thread_pool import for_each

__all__ = ["Item", "all_grey", "for_all", "groups_of", "labels_of"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image file and the index of its class. A data set may have millions, so it is small.

    Attributes:
        root: The folder of the data set, or the file that has the image.
        label: Index of the class.
        name: Name of the image in its data set.
        place: Where the data set lists the image, such as ``line 7``. Default: the name is the place.
        group: Images of the same group are never in two parts. Default: the image has a group of its own.
        part: The part for which the data set lists the image: ``train``, ``val`` or ``test``. Default: none.
        file: Path of the image, relative to ``root`` or absolute. Default: the name.
    """

    root: Path
    label: int
    name: str
    place: str = ""
    group: str = ""
    part: str = ""
    file: str = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / (self.file or self.name)

    @property
    def source(self) -> ImageSource:
        """The encoded image."""
        return self.path

    @property
    def identity(self) -> bytes:
        """Bytes for the hash of a data set, next to those of the file; a name in a class folder includes the class."""
        if not self.place:
            return os.fsencode(self.name)
        return json.dumps([self.name, self.label, self.group, self.part]).encode()

    def check(self) -> None:
        """Check the header, see `check_image`."""
        check_image(self.source)

    def check_pixels(self) -> None:
        """Check that `convert` works, see `kdedge.images.check_pixels`."""
        check_pixels(self.source)

    def overview(self, size: tuple[int, int]) -> Overview:
        """Return the contents of the image, with a thumbnail of this width and height, see `kdedge.images.overview`."""
        return overview(self.source, size)

    def convert(self, convert: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the pixels that a function makes of the upright RGB image, see `kdedge.images.convert_image`."""
        return convert_image(self.source, convert)

    def is_grey(self) -> bool:
        """Return whether the image has no color, see `kdedge.images.is_grey`."""
        return is_grey(self.source)

    def digest(self) -> bytes:
        """Return the SHA-256 of the stored image, 32 bytes.

        Raises:
            InputError: It cannot be read.
        """
        return digest(self.path)


def labels_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """Return the labels of images, ``[N] int64``."""
    return np.array([item.label for item in items], np.int64)


def groups_of(items: Sequence[Item]) -> NDArray[np.str_] | None:
    """Return the names of the groups of images, ``[N]`` str, empty for an image without one; None: none has one."""
    return np.array([item.group for item in items], np.str_) if any(item.group for item in items) else None


def all_grey(items: Sequence[Item]) -> bool:
    """Return whether no image has color; images that cannot be read do not count."""
    colored = threading.Event()

    def look(index: int) -> None:
        with contextlib.suppress(UnreadableImageError):
            if not colored.is_set() and not items[index].is_grey():
                colored.set()

    for_each(len(items), look, "looking for color")
    return not colored.is_set()


def for_all(items: Sequence[Item], work: Callable[[int], None], title: str) -> None:
    """Call ``work(index)`` for every item on all cores; raise one error for all images that cannot be read."""
    errors: dict[int, UnreadableImageError] = {}

    def attempt(index: int) -> None:
        try:
            work(index)
        except UnreadableImageError as error:
            place = items[index].place
            errors[index] = UnreadableImageError(error.path, f"{error.reason} ({place})") if place else error

    for_each(len(items), attempt, title)
    if errors:
        raise unreadable([errors[index] for index in sorted(errors)])
