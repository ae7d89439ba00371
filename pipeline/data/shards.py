"""The user's images in WebDataset shards: ``--data shards:PATH``.

PATH is a folder of ``.tar`` files, one such file, or a pattern such as ``set/train-{0000..0146}.tar`` or
``set/{train,test}/*.tar``. The members of an image have the same name up to the first dot: ``NAME.jpg`` (or another
image) and its class in ``NAME.cls``, ``NAME.json`` or ``NAME.txt``. Shards are not unpacked: an image is read from its
place in the file.
"""

import glob
import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.files import file_stamp, parse_json
from kdedge.images import EXTENSIONS
from kdedge.pipeline.data.class_folders import LeftOut, class_name, is_label, part_in, warn_left_out
from kdedge.pipeline.data.items import Item
from kdedge.pipeline.data.parts import Listed, Parts, check_groups
from kdedge.progress import track
from kdedge.stored_image import StoredImage

__all__ = ["expand_braces", "list_shards"]

_EXPECTED = (
    "expected .tar files with the members NAME.jpg (or another image) and NAME.cls (class number), NAME.txt (class) or "
    'NAME.json ({"label": class}), and optionally a file classes.txt with a class per line'
)
_LABELS = (".cls", ".json", ".txt")  # the first that a sample has
_KEYS = ("label", "class", "cls")  # of a .json
_DOTTED = "with a second dot in the name"
_MOST_BYTES = 1 << 20  # of a label


@dataclass(frozen=True)
class _Shard:
    """One file of images."""

    file: Path
    stamp: tuple[int, int]

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a member.

        Raises:
            ValueError: The file has changed.
        """
        if file_stamp(self.file) != self.stamp:
            raise ValueError("the shard has changed; leave it as it is while kdedge runs")
        with self.file.open("rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardItem(Item):
    """One image in a shard."""

    shard: _Shard
    offset: int
    size: int

    @property
    def source(self) -> StoredImage:
        """The bytes of the image."""
        return StoredImage(self.name, lambda: self.shard.read(self.offset, self.size))

    def digest(self) -> bytes:
        """Return the SHA-256 of the bytes."""
        return _digest(self.shard, self.offset, self.size)


@cache
def _digest(shard: _Shard, offset: int, size: int) -> bytes:
    with _reading(shard.file):
        return hashlib.sha256(shard.read(offset, size)).digest()


@dataclass(frozen=True, slots=True)
class _Sample:
    """One image and its class as the shard names it: by its name, or ``numbered``."""

    shard: _Shard
    offset: int
    size: int
    name: str
    label: str
    group: str
    numbered: bool


def list_shards(path: Path) -> Listed:
    """List the images of shards without opening one.

    Args:
        path: A folder, a file or a pattern.

    Raises:
        InputError: There are no shards, one is damaged, or a member is not as expected; it names shard and member.
    """
    base, files = _find(path)
    parts_of = {file: part_in(file.relative_to(base).as_posix()) for file in files}
    if len(unnamed := [file for file, part in parts_of.items() if not part]) not in {0, len(files)}:
        raise InputError(
            f"{unnamed[0]} has neither train, val nor test in its name, other shards of {path} have", _EXPECTED
        )
    samples: dict[str, list[_Sample]] = {}
    left_out: LeftOut = {}
    with track("listing shards", len(files)) as progress:
        for file, part in parts_of.items():
            samples.setdefault(part or "train", []).extend(_samples(base, file, left_out))
            progress.advance()
    warn_left_out(path, left_out)
    if not samples.keys() & {"train", "test"}:
        raise InputError(f"{path} has only shards of {', '.join(samples)}", _EXPECTED)
    if "train" not in samples:
        samples.pop("val", None)
    listed = _listed_classes(base)
    names = _class_names(samples["train" if "train" in samples else "test"], listed)
    indices = {name: index for index, name in enumerate(names)}
    parts: Parts = {part: [_item(sample, indices, listed) for sample in of_part] for part, of_part in samples.items()}
    check_groups(path, parts)
    return Listed("shards", path, names, parts, len(samples) > 1 or "test" in samples, _EXPECTED, left_out)


def _find(path: Path) -> tuple[Path, list[Path]]:
    """Return the folder above all shards, and the shards in the order of their names.

    Folders of a pattern that exist are taken literally, whatever their names.
    """
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        files = sorted(path.rglob("*.tar"))
        if not files:
            packed = next((file for file in sorted(path.rglob("*")) if file.name.endswith((".tar.gz", ".tgz"))), None)
            raise InputError(
                f"the folder {path} has no .tar file" + (f", but {packed.name}: decompress it" if packed else ""),
                _EXPECTED,
            )
        return path, files
    base = next((parent for parent in path.parents if parent.is_dir()), Path())
    found: list[Path] = []
    for expanded in expand_braces(str(path.relative_to(base))):
        matches = sorted(glob.glob(expanded, root_dir=base, recursive=True))
        if not matches:
            raise InputError(f"the shard {base / expanded} does not exist", "check the path or the pattern")
        found += (base / match for match in matches)
    if not found:
        raise InputError(f"{path} names no shard", "numbers count upwards, as in {000..146}")
    return base, list(dict.fromkeys(found))


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the patterns that braces stand for: ``{a,b}`` and ``{000..146}``."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if not brace:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    options: Sequence[str] = brace[1].split(",")
    if numbers:
        options = [str(number).zfill(len(numbers[1])) for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    for option in options:
        yield from expand_braces(pattern[: brace.start()] + option + pattern[brace.end() :])


def _samples(base: Path, file: Path, left_out: LeftOut) -> Iterator[_Sample]:
    """Yield the samples of a shard, and count the images that have neither a class nor a name up to the first dot."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    with _reading(file), tarfile.open(file, "r:") as archive:
        shard = _Shard(file, file_stamp(file))
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            key, dot, kind = name.partition(".")
            if member.isreg() and key:
                kinds = members.setdefault(folder + slash + key, {})
                if kinds.setdefault((dot + kind).lower(), member) is not member:
                    raise _bad(file, member.name, "the shard has it twice")
        if archive.offset >= shard.stamp[1]:
            raise ValueError("it is truncated: the mark at the end of an archive is missing")
        for key, kinds in members.items():
            images = [member for kind, member in kinds.items() if kind in EXTENSIONS]
            described = next((kinds[kind] for kind in _LABELS if kind in kinds), None)
            if not images and not described:
                if unused := sum(Path(kind).suffix in EXTENSIONS for kind in kinds):
                    left_out["", _DOTTED] = left_out.get(("", _DOTTED), 0) + unused
                continue
            if len(images) != 1:
                found = f"{len(images)} images" if images else "no image"
                raise _bad(file, key, f"it has {found} ({', '.join(kinds)})")
            if not described:
                raise _bad(file, images[0].name, "it has no .cls, .json or .txt next to it")
            stream = archive.extractfile(described)
            known = _label(file, described.name, stream.read(_MOST_BYTES) if stream else b"")
            name = f"{file.relative_to(base).as_posix()}/{images[0].name}"
            yield _Sample(shard, images[0].offset_data, images[0].size, name, *known)


def _label(file: Path, member: str, data: bytes) -> tuple[str, str, bool]:
    """Return the class and the group that a member names, or no group, and whether the class is surely a number."""
    value: Any = None
    group: Any = ""
    try:
        if member.lower().endswith(".json"):
            known = parse_json(data.decode())
            if isinstance(known, dict):
                value, group = next((known[key] for key in _KEYS if key in known), None), known.get("group", "")
        else:
            value = data.decode().strip()
    except ValueError as error:
        raise _bad(file, member, str(error)) from error
    label = class_name(str(value))
    if not isinstance(value, str | int) or isinstance(value, bool) or not label or not is_label(str(value)):
        shown = " ".join(repr(value)[:60].split())
        raise _bad(file, member, f"it has the class {shown}" if value is not None else "it has no key label")
    numbered = _is_number(label) and (isinstance(value, int) or member.lower().endswith(".cls"))
    return label, "" if group is None else str(group), numbered


def _listed_classes(base: Path) -> tuple[str, ...]:
    """Return the classes in ``classes.txt``; none without that file."""
    file = base / "classes.txt"
    if not file.is_file():
        return ()
    with _reading(file):
        names = tuple(class_name(line.strip()) for line in file.read_text("utf-8-sig").splitlines())
    if not all(names) or len(set(names)) < len(names) or not all(map(is_label, names)):
        raise InputError(f"{file} has an empty, repeated or invalid class", "expected a class per line")
    return names


def _class_names(samples: Sequence[_Sample], listed: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in the order of ``classes.txt``, else of their numbers, else of their names."""
    found = {_name(sample, listed) for sample in samples}
    if listed:
        return tuple(name for name in listed if name in found)
    return tuple(sorted(found, key=int if all(map(_is_number, found)) else str))


def _name(sample: _Sample, listed: Sequence[str]) -> str:
    """Return the name of a class, of which the sample may have the number."""
    if not listed or (sample.label in listed and not sample.numbered):
        return sample.label
    if _is_number(sample.label) and int(sample.label) < len(listed):
        return listed[int(sample.label)]
    raise InputError(f"{sample.name} has the class {sample.label}, which classes.txt has not", _EXPECTED)


def _is_number(text: str) -> bool:
    return text.isdecimal() and text.isascii()


def _item(sample: _Sample, indices: dict[str, int], listed: Sequence[str]) -> _ShardItem:
    name = _name(sample, listed)
    if name not in indices:
        raise InputError(f"{sample.name} has the class {name}, which the training shards have not", _EXPECTED)
    return _ShardItem(
        sample.shard.file, indices[name], sample.name, sample.name, sample.group,
        shard=sample.shard, offset=sample.offset, size=sample.size,
    )  # fmt: skip


def _bad(file: Path, member: str, what: str) -> InputError:
    return InputError(f"{member} in {file}: {what}", _EXPECTED)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise what goes wrong in reading a file as an InputError."""
    try:
        yield
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {file}: {' '.join(reason.split())}", _EXPECTED) from error
