"""The user's images, whatever lists them: class folders, a table or a NumPy file."""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.image_cache import decoded_images
from kdedge.images import UnreadableImageError
from kdedge.inputs import InputSpec, image_input
from kdedge.pipeline.data.class_folders import LeftOut, log_once, warn_missing
from kdedge.pipeline.data.duplicates import find_copies, same
from kdedge.pipeline.data.items import Item, all_grey, for_all, groups_of, labels_of
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.parts import Listed, divide
from kdedge.preprocessing import RESIZE_MODES
from kdedge.progress import track, warn_once
from kdedge.resizing import resize_image

__all__ = ["PART_IS", "UserImages", "divided", "source_name"]

PART_IS = {"folder": "folder", "table": "rows", "arrays": "array", "hf": "split", "shards": "shards"}
"""The word for a part of a data set, by its kind."""


@dataclass(frozen=True)
class UserImages:
    """A user's images, listed by class folders, a table or a NumPy file.

    Attributes:
        kind: ``folder``, ``table``, ``arrays``, ``hf`` or ``shards``.
        root: The folder or the file that lists the images.
        class_names: Names of the classes, sorted.
        image_size: Side length S of the decoded images in pixels.
        resize_mode: As of `kdedge.resizing.resize_image`.
        color: ``rgb``, ``grey`` (one channel), or ``auto``, see `grey`.
        train_items: Training images, including those held out for validation if ``val_items`` is empty.
        test_items: Test images.
        val_items: Images that the user set aside for validation.
        left_out: Number of files that may be images and are not used, by class (empty if none) and extension or place.
    """

    kind: str
    root: Path
    class_names: tuple[str, ...]
    image_size: int
    resize_mode: str
    color: str
    train_items: tuple[Item, ...]
    test_items: tuple[Item, ...]
    val_items: tuple[Item, ...]
    left_out: LeftOut

    @property
    def name(self) -> str:
        """Kind and name of the folder or file, see `source_name`."""
        return source_name(self.kind, self.root)

    @property
    def spec(self) -> InputSpec:
        """The input of models for these images."""
        return image_input(self.image_size, self.resize_mode, grey=self.grey)

    @cached_property
    def grey(self) -> bool:
        """Whether models take one channel; with ``auto`` they do if no image has color."""
        if self.color != "auto":
            return self.color == "grey"
        if not self.train_items or not all_grey(self.train_items + self.val_items):
            return False
        if not all_grey(self.test_items):
            warn_once(
                f"{self.root}: the training images are grey, and test images have color: the model takes RGB "
                "(--color grey: one channel)"
            )
            return False
        log_once(f"{self.root}: all images are grey: the model takes one channel (--color rgb: three)")
        return True

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """All images: training, validation, test."""
        return self.train_items + self.val_items + self.test_items

    def check_files(self) -> None:
        """Check the headers of all images.

        Raises:
            InputError: Images cannot be read; it names also those with an intact header.
        """
        items = self.items
        try:
            for_all(items, lambda index: items[index].check(), "checking images")
        except InputError:
            for_all(items, lambda index: items[index].check_pixels(), "checking images")
            raise

    def labelled_as(self, class_names: tuple[str, ...]) -> "UserImages":
        """Return a data set of test images only with the classes of a model, of which some may have no images.

        A data set with training images, or with classes that the model lacks, is returned unchanged.
        """
        unseen = [name for name in class_names if name not in self.class_names]
        if self.train_items or not unseen or not set(self.class_names) <= set(class_names):
            return self
        warn_missing(self.test_items[0].path.parents[1] if self.kind == "folder" else self.root, unseen)
        items = [replace(item, label=class_names.index(self.class_names[item.label])) for item in self.test_items]
        return replace(self, class_names=class_names, test_items=tuple(items))

    def train(self) -> Split:
        """Decode the training and validation images, without opening a test image.

        Raises:
            InputError: There are none, or some cannot be read.
            StageError: The cache of decoded images cannot be written.
        """
        return self.decoded(self.undecoded())

    def undecoded(self) -> Split:
        """Return the training and validation images without their pixels.

        Raises:
            InputError: There are none.
        """
        self._require_train()
        items = self.train_items + self.val_items
        validation = np.arange(len(items)) >= len(self.train_items) if self.val_items else None
        pixels = np.empty((len(items), 0, 0, 3), np.uint8)
        return Split(pixels, labels_of(items), self.class_names, None, validation, groups_of(items))

    def decoded(self, some: Split) -> Split:
        """Return a part of `undecoded` with its pixels.

        Raises:
            InputError: Images cannot be read.
            StageError: The cache of decoded images cannot be written.
        """
        items = [self.items[index] for index in some.dataset_indices]
        return replace(some, images=self._decode(items, "reading training images"))

    def without(self, indices: Collection[int]) -> "UserImages":
        """Return the data set without these images, given by their index in `items`."""
        kept = iter(index not in indices for index in range(len(self.items)))
        train, val, test = (
            tuple(item for item in items if next(kept)) for items in (self.train_items, self.val_items, self.test_items)
        )
        return replace(self, train_items=train, val_items=val, test_items=test)

    def test(self) -> Split:
        """Decode the test images, without opening a training image."""
        images, items = self._decode(self.test_items, "reading test images"), self.test_items
        return Split(images, labels_of(items), self.class_names, groups=groups_of(items))

    def test_counts(self) -> list[int]:
        """Return the number of test images of each class."""
        return list(map(int, np.bincount(labels_of(self.test_items), minlength=len(self.class_names))))

    def train_sha256(self) -> str:
        """Hash image size, resize, color, class names, relative names and bytes of the training and validation files.

        Raises:
            InputError: There are none, or one cannot be read.
        """
        self._require_train()
        return self._hash(self.train_items + self.val_items)

    def test_sha256(self) -> str:
        """Decode every test image, then hash the same of the test files as `train_sha256`.

        Raises:
            InputError: An image cannot be read.
        """
        # This runs before hours of training, and the benchmark after them: a truncated file is found now. The pixels
        # are dropped immediately, so that no stage can use them.
        for_all(self.test_items, lambda index: self.test_items[index].check_pixels(), "checking test images")
        return self._hash(self.test_items)

    def duplicates(self) -> dict[str, Any]:
        """Count images with the same bytes.

        Returns:
            ``test_copies``: test images that are also training or validation images; ``in_two_classes``: images whose
            bytes are in more than one class. ``test_copies_example`` and ``in_two_classes_example`` are two such files,
            relative to the folder, or None.

        Raises:
            InputError: A file cannot be read.
        """
        copies = self.copies(same(item.digest() for item in self.items))
        return {
            key: value
            for kind in ("test_copies", "in_two_classes")
            for key, value in (
                (kind, len(copies[kind])),
                (f"{kind}_example", list(map(self.file_name, copies[kind][0])) if copies[kind] else None),
            )
        }

    def copies(self, groups: Iterable[Sequence[int]]) -> dict[str, list[tuple[int, int]]]:
        """Return the copies of each kind among groups of equal images, given by their index in `items`."""
        learned = len(self.train_items) + len(self.val_items)
        return find_copies(groups, labels_of(self.items), np.arange(len(self.items)) >= learned)

    def warn_duplicates(self) -> None:
        """Warn of the images that `duplicates` counts.

        Raises:
            InputError: A file cannot be read.
        """
        found = self.duplicates()
        if found["test_copies"]:
            first, second = found["test_copies_example"]
            warn_once(
                f"{self.root}: {found['test_copies']} of {len(self.test_items)} test images are copies of training or "
                f"validation images, such as {first}, a copy of {second}: the measured accuracy is too high"
            )
        if found["in_two_classes"]:
            first, second = found["in_two_classes_example"]
            warn_once(
                f"{self.root}: {found['in_two_classes']} images have copies in another class, such as {first} and "
                f"{second}: one of the labels is wrong"
            )

    def file_name(self, index: int) -> str:
        """Return the name of an image, given by its index in `items`, for messages."""
        return os.fsencode(self.items[index].name).decode(errors="replace")

    def _require_train(self) -> None:
        if not self.train_items:
            raise InputError(
                f"{self.root} has no train {PART_IS[self.kind]}, which is only enough for `kdedge benchmark BUNDLE`",
                f"add {self.root / 'train'}/CLASS/IMAGE to train on" if self.kind == "folder" else "add it",
            )

    def _decode(self, items: Sequence[Item], title: str) -> NDArray[np.uint8]:
        spec = self.spec

        def key() -> str:
            return self.resize_mode + hashlib.sha256(b"".join(item.digest() for item in items)).hexdigest()

        def decode(index: int) -> NDArray[np.uint8]:
            return items[index].convert(lambda image: spec.of_rgb(resize_image(image, spec.size, spec.resize_mode)))

        try:
            return decoded_images(len(items), spec.size, key, decode, title, channels=len(spec.channels))
        except UnreadableImageError:  # name the others too
            for_all(items, lambda index: items[index].check_pixels(), "checking images")
            raise

    def _hash(self, items: Sequence[Item]) -> str:
        # Earlier versions could only squeeze and only had RGB; the hash of those images is as before.
        mode = () if self.resize_mode == RESIZE_MODES[0] else (self.resize_mode,)
        color = ("grey",) if self.grey else ()
        total = hashlib.sha256(
            repr((self.image_size, self.class_names, *mode, *color)).encode("utf-8", "surrogateescape")
        )
        with track("hashing images", len(items)) as progress:
            for item in items:
                # A digest has a fixed length and a name has no zero byte: no two sets hash the same bytes.
                total.update(item.identity + b"\0" + item.digest())
                progress.advance()
        return total.hexdigest()


def source_name(kind: str, root: Path) -> str:
    """Return the name of a data set in reports and manifests: its kind and the own name of its folder or file."""
    return f"{kind}:{os.fsencode(root.expanduser().resolve().name).decode(errors='replace')}"


def divided(listed: Listed, config: DataConfig) -> UserImages:
    """Return the data set of listed images; parts that are missing are held out from the training images.

    Raises:
        InputError: There are fewer than two classes, or a class has too few images or groups to divide.
    """
    root, names, kind = listed.root, listed.class_names, listed.kind
    if len(names) < 2:
        raise InputError(f"{root} has {len(names)} class ({', '.join(names)}), expected at least two", listed.expected)
    parts = divide(listed.parts, names, root, config.val_fraction, config.test_fraction)
    if {"train", "val"} == listed.parts.keys():
        log_once(
            f"{root} has no test {PART_IS[kind]}: {len(parts['test'])} of {len(listed.parts['train'])} images of train "
            "are held out as test images (--test-fraction), val is used for validation"
        )
    for part in ("val", "test") if kind != "folder" else ():
        present = {item.label for item in parts.get(part, ())}
        if present and (missing := [name for label, name in enumerate(names) if label not in present]):
            warn_missing(f"{root}, {part}", missing)
    train, test, val = (tuple(parts.get(part, ())) for part in ("train", "test", "val"))
    return UserImages(
        kind, root, names, config.image_size, config.resize, config.color, train, test, val, listed.left_out
    )
