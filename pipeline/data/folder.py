"""The user's own images in class folders: ``--data folder:PATH``.

Either ``PATH/CLASS/IMAGE``, or a folder for each part: ``PATH/train/CLASS/IMAGE``, ``PATH/val/CLASS/IMAGE`` and
``PATH/test/CLASS/IMAGE``. The parts may also be called training, valid, validation and testing, in any case.

- ``train`` and ``test``: validation images are held out from ``train``.
- ``train``, ``val`` and ``test``: each is used as what it is called.
- ``train`` and ``val``: ``val`` is for validation, never for the test; test images are held out from ``train``, always
  the same, as from a tree without parts.
- no parts, or ``train`` alone: test and validation images are held out.
- ``test`` alone (or with ``val``): enough to measure a bundle.

Classes are the folder names in Unicode's composed form (NFC), sorted. Files that are no images and folders inside class
folders are left out; what looks like an image among them is counted and named in a warning. A link that leads nowhere
is an error.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import TEST_SEED, Dataset, Split, hold_out, keep_used
from kdedge.errors import InputError
from kdedge.image_memory import empty_images
from kdedge.images import (
    EXTENSIONS,
    UnreadableImageError,
    check_image,
    check_pixels,
    for_each,
    image_dimensions,
    read_image,
    unreadable,
)
from kdedge.pipeline.data.options import DataConfig
from kdedge.progress import log, track, warn_once

__all__ = ["Folder", "check_outside", "folder_name", "open_folder"]

_LAYOUT = "expected PATH/CLASS/IMAGE, or PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE"

_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# Files that lie beside images and are none; others that are left out are worth a warning.
_HARMLESS = {
    *(".txt", ".md", ".rst", ".html", ".htm", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".toml"),
    *(".ini", ".cfg", ".log", ".db", ".lnk", ".url", ".py", ".sh"),
}
# Folders that systems make.
_JUNK = frozenset({"__MACOSX", "@eaDir", "__pycache__", "lost+found"})
_NESTED, _LOOSE = "in a folder inside the class folder", "outside any class folder"
# The training images that were decoded last are kept for the next stage of the process if they are not too many.
_MOST_KEPT_BYTES = 1 << 30
_decoded: dict[tuple[str, float, int], Split] = {}
# Joiners and spaces that scripts need and Python does not count as printable.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class _Item:
    """One image file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Folder:
    """Class folders whose files were listed and whose headers were checked.

    Attributes:
        root: The folder.
        class_names: Names of the classes, sorted.
        image_size: Side length S of the decoded images in pixels.
        train_items: Training images; validation images among them unless ``val_items`` has some.
        test_items: Test images.
        val_items: Images that the user set aside for validation.
        left_out: How many files that may be images are not used, by class (empty: none) and extension or place.
        val_fraction: Share of the training images held out for validation, if ``val_items`` is empty.
        train_size: Number of training images that are used (0: all).
    """

    root: Path
    class_names: tuple[str, ...]
    image_size: int
    train_items: tuple[_Item, ...]
    test_items: tuple[_Item, ...]
    val_items: tuple[_Item, ...]
    left_out: dict[tuple[str, str], int]
    val_fraction: float
    train_size: int

    @property
    def name(self) -> str:
        """The name of the folder, see `folder_name`."""
        return folder_name(self.root)

    def labelled_as(self, class_names: tuple[str, ...]) -> "Folder":
        """Return test images alone with the classes of a model, of which some may have no images; else itself."""
        unseen = [name for name in class_names if name not in self.class_names]
        if self.train_items or not unseen or not set(self.class_names) <= set(class_names):
            return self
        _warn_missing(self.test_items[0].path.parents[1], unseen)
        items = [_Item(item.path, class_names.index(self.class_names[item.label])) for item in self.test_items]
        return replace(self, class_names=class_names, test_items=tuple(items))

    def train(self) -> Split:
        """Decode the training and validation images that are used; no file of the test part is opened.

        Raises:
            InputError: There are none, some cannot be read, or they do not fit into memory.
        """
        key = (self.train_sha256(), self.val_fraction, self.train_size)
        if key in _decoded:
            return _decoded[key]
        items = self.train_items + self.val_items
        validation = np.arange(len(items)) >= len(self.train_items) if self.val_items else None
        undecoded = Split(np.empty((len(items), 0, 0, 3), np.uint8), _labels(items), self.class_names, None, validation)
        used = keep_used(undecoded, self.val_fraction, self.train_size)
        images = self._decode([items[index] for index in used.dataset_indices], "reading training images", copies=2)
        split = replace(used, images=images)
        _decoded.clear()
        if images.nbytes <= _MOST_KEPT_BYTES:
            images.flags.writeable = False
            _decoded[key] = split
        return split

    def test(self) -> Split:
        """Decode the test images; no file of the training part is opened."""
        return Split(self._decode(self.test_items, "reading test images"), _labels(self.test_items), self.class_names)

    def test_counts(self) -> list[int]:
        """Return the number of test images of each class."""
        return [int(count) for count in np.bincount(_labels(self.test_items), minlength=len(self.class_names))]

    def train_sha256(self) -> str:
        """Hash image size, class names, relative names and bytes of the training and validation files.

        Raises:
            InputError: There are none, or one cannot be read.
        """
        self._require_train()
        return self._hash(self.train_items + self.val_items)

    def test_sha256(self) -> str:
        """Hash image size, class names, relative names and bytes of the test files; refuse one that is no image."""
        # The benchmark decodes these after hours of training, and this runs before: a truncated file is found now. What
        # is decoded is dropped at once, so that nothing can choose by it.
        _for_all(self.test_items, lambda index: check_pixels(self.test_items[index].path), "checking test images")
        return self._hash(self.test_items)

    def source_sizes(self) -> dict[str, list[int]]:
        """Return width and height in pixels of the smallest, the median and the largest image as it is stored."""
        items = (*self.train_items, *self.val_items, *self.test_items)
        sizes = [(0, 0)] * len(items)

        def look(index: int) -> None:
            sizes[index] = image_dimensions(items[index].path)

        _for_all(items, look, "reading sizes")
        sizes.sort(key=lambda size: size[0] * size[1])
        return {
            name: list(sizes[place]) for name, place in (("smallest", 0), ("median", len(sizes) // 2), ("largest", -1))
        }

    def duplicates(self) -> dict[str, Any]:
        """Return how many images are not independent, by the bytes of their files.

        Returns:
            ``test_copies``: test images that are also training or validation images; ``in_two_classes``: files whose
            bytes are in more than one class. ``test_copies_example`` and ``in_two_classes_example`` are two such files,
            relative to the folder, or None.

        Raises:
            InputError: A file cannot be read.
        """
        learned: dict[bytes, _Item] = {}
        for item in self.train_items + self.val_items:
            learned.setdefault(_digest(item.path), item)
        copies = [(item, learned[_digest(item.path)]) for item in self.test_items if _digest(item.path) in learned]
        by_digest: dict[bytes, list[_Item]] = {}
        for item in self.train_items + self.val_items + self.test_items:
            by_digest.setdefault(_digest(item.path), []).append(item)
        mixed = [items for items in by_digest.values() if len({item.label for item in items}) > 1]
        other = [next(item for item in items if item.label != items[0].label) for items in mixed[:1]]
        return {
            "test_copies": len(copies),
            "test_copies_example": self._names(copies[0]) if copies else None,
            "in_two_classes": sum(len(items) for items in mixed),
            "in_two_classes_example": self._names((mixed[0][0], other[0])) if mixed else None,
        }

    def warn_duplicates(self) -> None:
        """Warn of what `duplicates` finds.

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

    def _names(self, items: Sequence[_Item]) -> list[str]:
        return [os.fsencode(item.path.relative_to(self.root).as_posix()).decode(errors="replace") for item in items]

    def _require_train(self) -> None:
        if not self.train_items:
            raise InputError(
                f"{self.root} has no train folder; its test images alone are enough for `kdedge benchmark BUNDLE`",
                f"add {self.root / 'train'}/CLASS/IMAGE to train on",
            )

    def _decode(self, items: Sequence[_Item], title: str, copies: int = 1) -> NDArray[np.uint8]:
        images = empty_images(len(items), self.image_size, copies)

        def decode(index: int) -> None:
            images[index] = read_image(items[index].path, self.image_size)

        _for_all(items, decode, title)
        return images

    def _hash(self, items: Sequence[_Item]) -> str:
        total = hashlib.sha256(repr((self.image_size, self.class_names)).encode("utf-8", "surrogateescape"))
        with track("hashing images", len(items)) as progress:
            for item in items:
                # The digest of each file has a fixed length and a name holds no zero byte: no two sets look alike.
                total.update(os.fsencode(item.path.relative_to(self.root).as_posix()) + b"\0" + _digest(item.path))
                progress.advance()
        return total.hexdigest()


def folder_name(root: Path) -> str:
    """Return what a data set is called in reports and manifests: ``folder:`` and the folder's own name, as text."""
    return f"folder:{os.fsencode(root.expanduser().resolve().name).decode(errors='replace')}"


def check_outside(dataset: Dataset, run_dir: Path) -> None:
    """Refuse a run directory that the next command would take for a class of the data set.

    Raises:
        InputError: It is inside a folder of class folders.
    """
    if not isinstance(dataset, Folder):
        return
    # Next to a train and a test folder, which hold the classes, other folders are ignored.
    parts = {
        item.path.parent.parent.resolve() for item in (*dataset.train_items, *dataset.val_items, *dataset.test_items)
    }
    inside = parts if len(parts) > 1 else {dataset.root.resolve()}
    if any(run_dir.resolve().is_relative_to(part) for part in inside):
        raise InputError(
            f"--out {run_dir} is inside the data folder {dataset.root}, where it would become a class",
            "give an --out outside of it",
        )


def open_folder(config: DataConfig, root: Path) -> Folder:
    """List the images of class folders, check their headers and divide them into train, validation and test.

    Args:
        config: Image size, number of training images and the shares of what is held out where there is no such folder.
        root: The folder; see above for what it may hold.

    Raises:
        InputError: A folder is missing or empty, has fewer than two classes or too few images of a class, the classes
            of the parts differ, or images cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"the data folder {root} {'is not a folder' if root.exists() else 'does not exist'}", _LAYOUT)
    parts = _find_parts(root)
    classes_root = parts.get("train") or parts.get("test") or root
    names, items, left_out = _list_classes(classes_root)
    if len(names) < 2:
        raise InputError(f"{classes_root} has one class folder ({names[0]}), expected at least two", _LAYOUT)
    train: Sequence[_Item] = items
    val: Sequence[_Item] = ()
    if parts and "train" not in parts:
        train, test = (), items
    else:
        held = [name for part, name in (("val", "validation"), ("test", "test")) if part not in parts]
        _check_counts(classes_root, names, train, held)
        if "val" in parts:
            val = _list_part(parts["val"], classes_root, names, left_out)
        if "test" in parts:
            test = _list_part(parts["test"], classes_root, names, left_out)
        else:
            kept, taken = hold_out(_labels(train), config.test_fraction, np.random.default_rng(TEST_SEED))
            train, test = [items[index] for index in kept], [items[index] for index in taken]
            if "val" in parts:
                _log_once(
                    f"{root} has no test folder: {len(test)} of {len(items)} images of {parts['train'].name} are held "
                    f"out as test images (--test-fraction), {parts['val'].name} is used for validation"
                )
    _warn_left_out(root, left_out)
    everything = [*train, *val, *test]
    try:
        _for_all(everything, lambda index: check_image(everything[index].path), "checking images")
    except InputError:
        # One is damaged, so find the others too: what has a good header may be cut off.
        _for_all(everything, lambda index: check_pixels(everything[index].path), "checking images")
        raise
    return Folder(
        root, tuple(names), config.image_size, tuple(train), tuple(test), tuple(val), left_out, config.val_fraction,
        config.train_size,
    )  # fmt: skip


def _find_parts(root: Path) -> dict[str, Path]:
    """Return the folders of the parts, by ``train``, ``val`` and ``test``; none: the class folders are in ``root``.

    Raises:
        InputError: There is something beside them that may be meant as a class, or neither training nor test images.
    """
    folders = _folders(root)
    in_order = tuple(_PARTS.values()).index
    named = [folder for folder in folders if folder.name.casefold() in _PARTS]
    named.sort(key=lambda folder: in_order(_PARTS[folder.name.casefold()]))
    others = [folder for folder in folders if folder not in named]
    # A class may be called "train" or "test": a part holds folders, or stands among parts.
    if not any(_folders(folder) for folder in named) and (others or not named):
        return {}
    parts: dict[str, Path] = {}
    for folder in named:
        part = _PARTS[folder.name.casefold()]
        if part in parts:
            raise InputError(
                f"{root} has two folders of {part} images: {parts[part].name} and {folder.name}", "keep one of them"
            )
        parts[part] = folder
    listed = ", ".join(folder.name for folder in named)
    strays = [folder.name for folder in others if next(_images_below(folder), None)]
    strays += [path.name for path in _images_in(root)]
    if strays:
        more = f" and {len(strays) - 5} more" if len(strays) > 5 else ""
        raise InputError(
            f"{root} has images in {', '.join(strays[:5])}{more} next to {listed}: it is not clear whether these are "
            "classes",
            f"move them into {listed} or out of {root}; {_LAYOUT}",
        )
    if "train" not in parts and "test" not in parts:
        raise InputError(f"{root} has {listed} but no train folder", _LAYOUT)
    if "train" not in parts and "val" in parts:
        others.append(parts.pop("val"))
    if others:
        used = " and ".join(folder.name for folder in parts.values())
        _log_once(f"{root}: using {used}, ignoring {', '.join(folder.name for folder in others)}")
    return parts


def _list_classes(root: Path) -> tuple[list[str], list[_Item], dict[tuple[str, str], int]]:
    """List the class names and the images of a folder of class folders, sorted by name, and count what is left out."""
    folders = sorted(_folders(root), key=lambda folder: (_class_name(folder), folder.name))
    loose = len(_images_in(root))
    if not folders:
        raise InputError(f"{root} has no class folders" + (f", but {loose} images" if loose else ""), _LAYOUT)
    names = list(dict.fromkeys(_class_name(folder) for folder in folders))
    items, left_out = [], Counter({("", _LOOSE): loose} if loose else {})
    for folder in folders:
        name = _class_name(folder)
        # Labels are lines of a UTF-8 file on the device.
        if not all(map(_fits_a_label, name)) or name.encode(errors="replace").decode() != name:
            raise InputError(
                f"the class folder {folder.name!r} in {root} has characters that a label cannot have",
                "rename that folder",
            )
        files, inner = _images_in(folder), [path.name for path in _folders(folder) if next(_images_below(path), None)]
        if not files and inner:
            more = f" and {len(inner) - 5} more" if len(inner) > 5 else ""
            raise InputError(
                f"the class folder {folder} has no image of its own but folders with images: "
                f"{', '.join(inner[:5])}{more}",
                "move the class folders up, or all images of a class into one folder; " + _LAYOUT,
            )
        others = Counter(
            path.suffix.lower() or "without an extension"
            for path in _visible(folder)
            if path.is_file() and path.suffix.lower() not in EXTENSIONS | _HARMLESS
        )
        if not files:
            unused = ", but " + ", ".join(f"{count} {kind}" for kind, count in others.items()) if others else ""
            raise InputError(
                f"the class folder {folder} is empty: it has no image ({', '.join(sorted(EXTENSIONS))}){unused}",
                "add images or remove that folder; " + _LAYOUT,
            )
        items += [_Item(path, names.index(name)) for path in files]
        left_out.update({(name, kind): count for kind, count in others.items()})
        if nested := sum(1 for path in _folders(folder) for _ in _images_below(path)):
            left_out[name, _NESTED] += nested
    return names, items, dict(left_out)


def _list_part(
    part_root: Path, train_root: Path, names: list[str], left_out: dict[tuple[str, str], int]
) -> list[_Item]:
    """List validation or test images, labelled as the training classes are, and add to what is left out."""
    part_names, items, more_left_out = _list_classes(part_root)
    unknown = [name for name in part_names if name not in names]
    if unknown:
        raise InputError(
            f"{part_root} has the class {unknown[0]}, which {train_root} has not (it has {', '.join(names[:8])}"
            f"{' …' if len(names) > 8 else ''})",
            f"give that class training images or remove it from {part_root}",
        )
    missing = [name for name in names if name not in part_names]
    if missing:
        _warn_missing(part_root, missing)
    for key, count in more_left_out.items():
        left_out[key] = left_out.get(key, 0) + count
    return [_Item(item.path, names.index(part_names[item.label])) for item in items]


def _warn_missing(part_root: Path, names: list[str]) -> None:
    warn_once(f"{part_root} has no images of {', '.join(names)}: the accuracy says nothing about that")


def _warn_left_out(root: Path, left_out: dict[tuple[str, str], int]) -> None:
    """Say in one line how many files that may be images are not used."""
    if not left_out:
        return
    classes: dict[str, list[str]] = {}
    for (name, kind), count in left_out.items():
        classes.setdefault(name, []).append(f"{count} {kind}")
    parts = [f"{name + ': ' if name else ''}{', '.join(kinds)}" for name, kinds in list(classes.items())[:8]]
    more = f"; and {len(classes) - 8} more classes" if len(classes) > 8 else ""
    kinds = {kind for _, kind in left_out}
    hint = " (convert HEIC to JPEG)" if kinds & {".heic", ".heif"} else ""
    total = sum(left_out.values())
    warn_once(f"{root}: {total} file{'s are' if total > 1 else ' is'} not used: {'; '.join(parts)}{more}{hint}")


@cache
def _log_once(message: str) -> None:
    log(message)


def _check_counts(root: Path, names: list[str], items: Sequence[_Item], held: list[str]) -> None:
    """Refuse a class that is too small to have an image in every part that is taken from it."""
    counts = np.bincount(_labels(items), minlength=len(names))
    label, least = int(counts.argmin()), 1 + len(held)
    if counts[label] < least:
        parts = ", ".join(["training", *held[:-1]]) + f" and {held[-1]}"
        raise InputError(
            f"the class folder {root / names[label]} has {counts[label]} image{'s' if counts[label] > 1 else ''}, "
            f"too few to divide: expected at least {least} (for {parts})",
            "add images to that class or remove it",
        )


def _for_all(items: Sequence[_Item], work: Callable[[int], None], title: str) -> None:
    """Call ``work(index)`` for every item on all cores; raise one error for all images that cannot be read."""
    errors: dict[int, UnreadableImageError] = {}

    def attempt(index: int) -> None:
        try:
            work(index)
        except UnreadableImageError as error:
            errors[index] = error

    for_each(len(items), attempt, title)
    if errors:
        raise unreadable([errors[index] for index in sorted(errors)])


def _digest(path: Path) -> bytes:
    """Return the SHA-256 of a file; one that did not change is read once."""
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


def _class_name(folder: Path) -> str:
    """Return the class of a folder: the same for names that look the same, whatever system wrote them."""
    return unicodedata.normalize("NFC", folder.name)


def _fits_a_label(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _images_in(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and path.is_file()]


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and in the folders inside it."""
    yield from _images_in(folder)
    for inner in _folders(folder):
        if not inner.is_symlink():
            yield from _images_below(inner)


def _labels(items: Sequence[_Item]) -> NDArray[np.int64]:
    return np.array([item.label for item in items], np.int64)


def _folders(root: Path) -> list[Path]:
    return [path for path in _visible(root) if path.is_dir() and path.name not in _JUNK]


def _visible(folder: Path) -> list[Path]:
    """List what a folder holds, sorted by name, without hidden entries."""
    try:
        # By the name: paths of Windows compare without regard to case.
        found = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise InputError(
            f"cannot read the folder {folder}: {error.strerror or error}", "check its permissions"
        ) from error
    for path in found:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} links to {os.readlink(path)}, which does not exist", "mend or remove that link")
    return found
