"""Lists the images of class folders, the classes that they belong to, and the parts of a data set.

The layout is ``PATH/CLASS/IMAGE``, or a folder for each part: ``PATH/train/CLASS/IMAGE``, ``PATH/val/CLASS/IMAGE`` and
``PATH/test/CLASS/IMAGE``. The parts may have other usual names (`PARTS`), in any case.

Classes are the folder names in Unicode's composed form (NFC), sorted. Other files and folders inside class folders are
left out; those that may be images are counted for a warning. A broken link is an error.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from kdedge.errors import InputError
from kdedge.images import EXTENSIONS, HARMLESS
from kdedge.pipeline.data.items import Item
from kdedge.progress import log, warn_once

__all__ = [
    "LAYOUT",
    "PARTS",
    "LeftOut",
    "class_name",
    "find_parts",
    "first_five",
    "folders_in",
    "is_label",
    "list_classes",
    "list_part",
    "log_once",
    "part_in",
    "warn_left_out",
    "warn_missing",
]

LAYOUT = "expected PATH/CLASS/IMAGE, or PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE"
LeftOut = dict[tuple[str, str], int]
"""Number of files that may be images and are not used, by class (empty if none) and extension or place."""

PARTS = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
}

# Folders that operating systems create.
_JUNK = frozenset({"__MACOSX", "@eaDir", "__pycache__", "lost+found"})
_NESTED, _LOOSE = "in a folder inside the class folder", "outside any class folder"
# Joiners that scripts need and Python does not count as printable.
_JOINERS = "\u200c\u200d"


def part_in(path: str) -> str:
    """Return the part that the last such word of a relative path names: ``train``, ``val``, ``test``; empty: none."""
    words = re.split(r"[^a-z]+", path.casefold())
    return next((PARTS[word] for word in reversed(words) if word in PARTS), "")


def find_parts(root: Path) -> dict[str, Path]:
    """Return the folders of the parts, by ``train``, ``val`` and ``test``; empty: ``root`` has the class folders.

    Raises:
        InputError: Images next to the parts may be a class, or there are neither training nor test images.
    """
    folders = folders_in(root)
    in_order = tuple(PARTS.values()).index
    named = [folder for folder in folders if folder.name.casefold() in PARTS]
    named.sort(key=lambda folder: in_order(PARTS[folder.name.casefold()]))
    others = [folder for folder in folders if folder not in named]
    # A class may be called "train" or "test": a part has folders in it, or is next to other parts only.
    if not any(folders_in(folder) for folder in named) and (others or not named):
        return {}
    parts: dict[str, Path] = {}
    for folder in named:
        part = PARTS[folder.name.casefold()]
        if part in parts:
            raise InputError(
                f"{root} has two folders of {part} images: {parts[part].name} and {folder.name}", "keep one of them"
            )
        parts[part] = folder
    listed = ", ".join(folder.name for folder in named)
    strays = [folder.name for folder in others if next(_images_below(folder), None)]
    strays += [path.name for path in _images_in(root)]
    if strays:
        raise InputError(
            f"{root} has images in {first_five(strays)} next to {listed}: it is not clear whether these are classes",
            f"move them into {listed} or out of {root}; {LAYOUT}",
        )
    if "train" not in parts and "test" not in parts:
        raise InputError(f"{root} has {listed} but no train folder", LAYOUT)
    if "train" not in parts and "val" in parts:
        others.append(parts.pop("val"))
    if others:
        used = " and ".join(folder.name for folder in parts.values())
        log_once(f"{root}: using {used}, ignoring {', '.join(folder.name for folder in others)}")
    return parts


def list_classes(root: Path, base: Path) -> tuple[list[str], list[Item], LeftOut]:
    """List the class names and the images of a folder of class folders, sorted by name, and count files left out.

    Args:
        root: The folder with the class folders.
        base: The folder of the data set: names of images are relative to it.

    Raises:
        InputError: There is no class folder, one is empty or is not a valid label, or a folder cannot be read.
    """
    folders = sorted(folders_in(root), key=lambda folder: (class_name(folder.name), folder.name))
    loose = len(_images_in(root))
    if not folders:
        raise InputError(f"{root} has no class folders" + (f", but {loose} images" if loose else ""), LAYOUT)
    names = list(dict.fromkeys(class_name(folder.name) for folder in folders))
    items, left_out = [], Counter({("", _LOOSE): loose} if loose else {})
    for folder in folders:
        name = class_name(folder.name)
        if not name or not is_label(name):
            raise InputError(
                f"the class folder {folder.name!r} in {root} has characters that a label cannot have",
                "rename that folder",
            )
        files, inner = _images_in(folder), [path.name for path in folders_in(folder) if next(_images_below(path), None)]
        if not files and inner:
            raise InputError(
                f"the class folder {folder} has no image of its own but folders with images: {first_five(inner)}",
                "move the class folders up, or all images of a class into one folder; " + LAYOUT,
            )
        others = Counter(
            path.suffix.lower() or "without an extension"
            for path in _visible(folder)
            if path.is_file() and path.suffix.lower() not in EXTENSIONS | HARMLESS
        )
        if not files:
            unused = ", but " + ", ".join(f"{count} {kind}" for kind, count in others.items()) if others else ""
            sensor = f"for recordings of a sensor, --data windows:{base}; otherwise " * any(folder.rglob("*.csv"))
            raise InputError(
                f"the class folder {folder} is empty: it has no image ({', '.join(sorted(EXTENSIONS))}){unused}",
                f"{sensor}add images or remove that folder; {LAYOUT}",
            )
        items += [Item(base, names.index(name), path.relative_to(base).as_posix()) for path in files]
        left_out.update({(name, kind): count for kind, count in others.items()})
        if nested := sum(1 for path in folders_in(folder) for _ in _images_below(path)):
            left_out[name, _NESTED] += nested
    return names, items, dict(left_out)


def list_part(part_root: Path, train_root: Path, base: Path, names: list[str], left_out: LeftOut) -> list[Item]:
    """List validation or test images with the labels of the training classes, and add to the files left out.

    Raises:
        InputError: As `list_classes`, or the part has a class without training images.
    """
    part_names, items, more_left_out = list_classes(part_root, base)
    unknown = [name for name in part_names if name not in names]
    if unknown:
        raise InputError(
            f"{part_root} has the class {unknown[0]}, which {train_root} has not (it has {', '.join(names[:8])}"
            f"{' …' if len(names) > 8 else ''})",
            f"give that class training images or remove it from {part_root}",
        )
    if missing := [name for name in names if name not in part_names]:
        warn_missing(part_root, missing)
    for key, count in more_left_out.items():
        left_out[key] = left_out.get(key, 0) + count
    return [replace(item, label=names.index(part_names[item.label])) for item in items]


def warn_missing(part_root: object, names: list[str], inputs: str = "images") -> None:
    """Warn of classes without images or other inputs in a part."""
    warn_once(f"{part_root} has no {inputs} of {', '.join(names)}: the accuracy does not include these classes")


def warn_left_out(root: Path, left_out: LeftOut) -> None:
    """Warn in one line of the files that may be images and are not used."""
    if not left_out:
        return
    classes: dict[str, list[str]] = {}
    for (name, kind), count in left_out.items():
        classes.setdefault(name, []).append(f"{count} {kind}")
    parts = [f"{name + ': ' if name else ''}{', '.join(kinds)}" for name, kinds in list(classes.items())[:8]]
    more = f"; and {len(classes) - 8} more classes" if len(classes) > 8 else ""
    kinds = {kind for _, kind in left_out}
    hint = " (for HEIC: pip install pillow-heif)" if kinds & {".heic", ".heif"} else ""
    total = sum(left_out.values())
    warn_once(f"{root}: {total} file{'s are' if total > 1 else ' is'} not used: {'; '.join(parts)}{more}{hint}")


@cache
def log_once(message: str) -> None:
    """Log a message that this process has not logged before."""
    log(message)


def first_five(names: Sequence[str]) -> str:
    """Return up to five names and the number of the others as text."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def class_name(text: str) -> str:
    """Return the class that a text names: names that look the same are the same class on every system."""
    return unicodedata.normalize("NFC", text).strip()


def is_label(name: str) -> bool:
    """Return whether a class can have a name: labels are lines of a UTF-8 file on the device."""
    return all(map(_fits_a_label, name)) and name.encode(errors="replace").decode() == name


def _fits_a_label(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _images_in(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and path.is_file()]


def _images_below(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and in the folders inside it."""
    yield from _images_in(folder)
    for inner in folders_in(folder):
        if not inner.is_symlink():
            yield from _images_below(inner)


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and those of operating systems."""
    return [path for path in _visible(root) if path.is_dir() and path.name not in _JUNK]


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted by name."""
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
