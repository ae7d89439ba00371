"""The user's own images in class folders: ``--data folder:PATH``.

Either ``PATH/train/CLASS/IMAGE`` and ``PATH/test/CLASS/IMAGE``, or ``PATH/CLASS/IMAGE`` (or only the ``train`` part),
which is then divided, always alike. The ``test`` part alone is enough to measure a bundle. Classes are the folder
names, sorted; hidden files, other kinds of files and folders inside class folders are ignored; a link that leads
nowhere is an error.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.base import TEST_SEED, Split, hold_out
from pipeline.data.images import EXTENSIONS, check_image, check_pixels, fill_images, for_each, read_image
from pipeline.errors import InputError
from pipeline.progress import log, track, warn_once

__all__ = ["Folder", "folder_name", "open_folder"]

_LAYOUT = "expected PATH/CLASS/IMAGE, or PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE"


@dataclass(frozen=True)
class _Item:
    """One image file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Folder:
    """Class folders whose files were listed and whose headers were checked."""

    root: Path
    class_names: tuple[str, ...]
    image_size: int
    train_items: tuple[_Item, ...]
    test_items: tuple[_Item, ...]

    @property
    def name(self) -> str:
        """The name of the folder, see `folder_name`."""
        return folder_name(self.root)

    def labelled_as(self, class_names: tuple[str, ...]) -> "Folder":
        """Return test images alone with the classes of a model, of which some may have no images; else itself."""
        unseen = [name for name in class_names if name not in self.class_names]
        if self.train_items or not unseen or not set(self.class_names) <= set(class_names):
            return self
        _warn_untested(self.root / "test", unseen)
        items = [_Item(item.path, class_names.index(self.class_names[item.label])) for item in self.test_items]
        return replace(self, class_names=class_names, test_items=tuple(items))

    def train(self) -> Split:
        """Decode the training images; no file of the test part is opened.

        Raises:
            InputError: There are none, or one cannot be read.
        """
        self._require_train()
        return self._decode(self.train_items, "reading training images")

    def test(self) -> Split:
        """Decode the test images; no file of the training part is opened."""
        return self._decode(self.test_items, "reading test images")

    def train_sha256(self) -> str:
        """Hash image size, class names, relative names and bytes of the training files.

        Raises:
            InputError: There are none, or one cannot be read.
        """
        self._require_train()
        return self._hash(self.train_items)

    def test_sha256(self) -> str:
        """Hash image size, class names, relative names and bytes of the test files; refuse one that is no image."""
        # The benchmark decodes these after hours of training, and this runs before: a truncated file is found now. What
        # is decoded is dropped at once, so that nothing can choose by it.
        for_each(len(self.test_items), lambda index: check_pixels(self.test_items[index].path), "checking test images")
        return self._hash(self.test_items)

    def _require_train(self) -> None:
        if not self.train_items:
            raise InputError(
                f"{self.root} has no train folder; its test images alone are enough for `kdedge benchmark BUNDLE`",
                f"add {self.root / 'train'}/CLASS/IMAGE to train on",
            )

    def _decode(self, items: Sequence[_Item], title: str) -> Split:
        images = np.empty((len(items), self.image_size, self.image_size, 3), np.uint8)
        fill_images(images, lambda index: read_image(items[index].path, self.image_size), title)
        return Split(images, _labels(items), self.class_names)

    def _hash(self, items: Sequence[_Item]) -> str:
        total = hashlib.sha256(repr((self.image_size, self.class_names)).encode("utf-8", "surrogateescape"))
        with track("hashing images", len(items)) as progress:
            for item in items:
                try:
                    with item.path.open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").digest()
                except OSError as error:
                    message = f"cannot read the image {item.path}: {error.strerror or error}"
                    raise InputError(message, "leave the folder as it is while kdedge runs") from error
                # The digest of each file has a fixed length and a name holds no zero byte: no two sets look alike.
                total.update(os.fsencode(item.path.relative_to(self.root).as_posix()) + b"\0" + digest)
                progress.advance()
        return total.hexdigest()


def folder_name(root: Path) -> str:
    """Return what a data set is called in reports and manifests: ``folder:`` and the folder's own name, as text."""
    return f"folder:{os.fsencode(root.expanduser().resolve().name).decode(errors='replace')}"


def open_folder(root: Path, image_size: int, test_fraction: float) -> Folder:
    """List the images of class folders, check their headers and divide them into train and test.

    Args:
        root: Folder with class folders, or with ``train`` and ``test`` folders that have them, or with ``test`` alone.
        image_size: Side length in pixels to which every image is resized.
        test_fraction: Share of each class that becomes test images if there is no ``test`` folder, 0..1.

    Raises:
        InputError: A folder is missing or empty, has fewer than two classes or too few images of a class, test and
            training classes differ, or an image cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"the data folder {root} {'is not a folder' if root.exists() else 'does not exist'}", _LAYOUT)
    classes_root, test_root = _find_parts(root)
    names, train = _list_classes(classes_root)
    if len(names) < 2:
        raise InputError(f"{classes_root} has one class folder ({names[0]}), expected at least two", _LAYOUT)
    if test_root is None:
        # One image each for train, validation and test.
        _check_counts(classes_root, names, train, least=3, parts="training, validation and test")
        kept, held = hold_out(_labels(train), test_fraction, np.random.default_rng(TEST_SEED))
        train, test = [train[index] for index in kept], [train[index] for index in held]
    elif test_root == classes_root:
        train, test = [], train
    else:
        _check_counts(classes_root, names, train, least=2, parts="training and validation")
        test = _list_test(test_root, classes_root, names)
    items = train + test
    for_each(len(items), lambda index: check_image(items[index].path), "checking images")
    return Folder(root, tuple(names), image_size, tuple(train), tuple(test))


def _find_parts(root: Path) -> tuple[Path, Path | None]:
    """Return where the classes are, and the test images if they have a folder of their own (the same: only they do)."""
    folders = _folders(root)
    names = [folder.name for folder in folders]
    train, test = root / "train", root / "test"
    if "train" in names and "test" in names and _folders(train):
        others = [name for name in names if name not in ("train", "test")]
        if others:
            log(f"{root}: using train and test, ignoring {', '.join(others)}")
        return train, test
    # A class may be called "train" or "test": it is a part only if it stands alone and has folders in it.
    if names == ["train"] and _folders(train):
        return train, None
    if names == ["test"] and _folders(test):
        return test, test
    return root, None


def _list_classes(root: Path) -> tuple[list[str], list[_Item]]:
    """List the class names and the images of a folder of class folders, sorted by name."""
    folders = _folders(root)
    if not folders:
        raise InputError(f"{root} has no class folders", _LAYOUT)
    items = []
    for label, folder in enumerate(folders):
        files = [path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and path.is_file()]
        if not files:
            raise InputError(
                f"the class folder {folder} is empty: it has no image ({', '.join(sorted(EXTENSIONS))})",
                "add images or remove that folder; " + _LAYOUT,
            )
        items += [_Item(path, label) for path in files]
    names = [folder.name for folder in folders]
    for name in names:
        # Labels are lines of a UTF-8 file on the device.
        if not name.isprintable() or name.encode(errors="replace").decode() != name:
            raise InputError(
                f"the class folder {name!r} in {root} has characters that a label cannot have", "rename that folder"
            )
    return names, items


def _list_test(test_root: Path, train_root: Path, names: list[str]) -> list[_Item]:
    """List the test images, labelled as the training classes are."""
    test_names, items = _list_classes(test_root)
    unknown = [name for name in test_names if name not in names]
    if unknown:
        raise InputError(
            f"{test_root} has the class {unknown[0]}, which {train_root} has not (it has {', '.join(names[:8])}"
            f"{' …' if len(names) > 8 else ''})",
            "give that class training images or remove it from the test folder",
        )
    untested = [name for name in names if name not in test_names]
    if untested:
        _warn_untested(test_root, untested)
    return [_Item(item.path, names.index(test_names[item.label])) for item in items]


def _warn_untested(test_root: Path, names: list[str]) -> None:
    warn_once(f"{test_root} has no images of {', '.join(names)}: the accuracy says nothing about that")


def _check_counts(root: Path, names: list[str], items: list[_Item], least: int, parts: str) -> None:
    """Refuse a class that is too small to have an image in every part."""
    counts = np.bincount(_labels(items), minlength=len(names))
    label = int(counts.argmin())
    if counts[label] < least:
        raise InputError(
            f"the class folder {root / names[label]} has {counts[label]} image{'s' if counts[label] > 1 else ''}, "
            f"too few to divide: expected at least {least} (for {parts})",
            "add images to that class or remove it",
        )


def _labels(items: Sequence[_Item]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array([item.label for item in items], np.int64)


def _folders(root: Path) -> list[Path]:
    return [path for path in _visible(root) if path.is_dir()]


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
