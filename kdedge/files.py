"""Single files: SHA-256, reading within limits and with clear errors, atomic writing."""

import csv
import errno
import hashlib
import io
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from kdedge.errors import InputError, StageError

__all__ = [
    "cache_bytes",
    "cache_dir",
    "csv_bytes",
    "disk_errors",
    "file_sha256",
    "file_stamp",
    "json_bytes",
    "load_json",
    "parse_json",
    "read_json",
    "read_toml",
    "scratch_dir",
    "write_atomic",
    "write_json",
]

# Far above the files of kdedge. Larger or deeper ones would end in a MemoryError or RecursionError.
_MOST_BYTES = 256 << 20
_MOST_DEPTH = 64

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> tuple[int, int]:
    """Return the time of the last change of a file in ns and its size in bytes; a changed file has others."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: after a crash the file has the old or the new content.

    Raises:
        StageError: The disk is full or the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.kdedge")  # a name of kdedge's own
    with disk_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the bytes that `write_json` writes."""
    return (json.dumps(value, indent=2) + "\n").encode()


def csv_bytes(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a CSV table in UTF-8 with a heading; a cell without a value is empty, as is a table without columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if columns:
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode(errors="replace")


def parse_json(text: str) -> Any:
    """Parse JSON of limited depth, with whole numbers of at most 64 bits.

    Raises:
        ValueError: It is not valid JSON, or exceeds a limit.
    """
    return _parse(text, json.loads)


def read_json(path: Path) -> Any:
    """Read a JSON file of limited size; otherwise as `parse_json`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not valid JSON in UTF-8, or exceeds a limit.
    """
    return parse_json(_read_text(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file within the limits of `read_json`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not valid TOML in UTF-8, or exceeds a limit.
    """
    table: dict[str, Any] = _parse(_read_text(path), tomllib.loads)
    return table


def _read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"larger than {_MOST_BYTES >> 20} MiB")
    return data.decode("utf-8-sig")


def _parse(text: str, parse: Callable[[str], Any]) -> Any:
    """Parse a text and check the depth and the numbers of the result."""
    try:
        value = parse(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MOST_DEPTH} levels") from None
    level = [value]
    for _ in range(_MOST_DEPTH):
        if any(isinstance(item, int) and item.bit_length() > 64 for item in level):
            raise ValueError("a whole number of more than 64 bits")
        nested = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in nested for item in items]
        if not level:
            return value
    raise ValueError(f"nested deeper than {_MOST_DEPTH} levels")


def load_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object that must have ``keys``.

    Raises:
        InputError: The file is missing, damaged, or lacks a key.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "make it again with the stage that wrote it") from error
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}", "make it again with the stage that wrote it")
    result: dict[str, Any] = value
    return result


@contextmanager
def disk_errors(path: Path, place: str = "give another --out") -> Iterator[None]:
    """Turn operating-system errors of the block, which writes ``path``, into errors for the user.

    Args:
        path: The file or folder.
        place: Advice for the user on how to choose another disk.

    Raises:
        StageError: The disk is full, the folder is read-only, or the system refuses another operation.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise StageError(*_explain(error, path, place)) from error


def _explain(error: OSError, path: Path, place: str) -> tuple[str, str]:
    """Return message and hint of an error."""
    reason = error.strerror or str(error)
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    ours = named is None or named.is_relative_to(path.parent)
    if error.errno in _TOO_MANY_FILES:
        return f"the system refused: {reason}", "raise the limit on open files: ulimit -n 4096"
    if error.errno in _NO_SPACE:
        return f"cannot write {named or path}: {reason}", f"free some space{f', or {place}' if ours else ' there'}"
    if error.errno in _FORBIDDEN:
        verb = "write" if ours else "use"
        return f"cannot {verb} {named or path}: {reason}", f"check its permissions{f', or {place}' if ours else ''}"
    return f"cannot use {named}: {reason}" if named else f"the system refused: {reason}", ""


@contextmanager
def scratch_dir() -> Iterator[str]:
    """Make a folder for temporary files; delete it at the end.

    Raises:
        StageError: The disk of TMPDIR is full or read-only.
    """
    folder = Path(tempfile.gettempdir())
    place = f"set TMPDIR to another folder than {folder}"
    with disk_errors(folder / "kdedge", place), tempfile.TemporaryDirectory(prefix="kdedge-") as name:
        yield name


def cache_dir() -> Path:
    """Return the folder for downloads: ``$KDEDGE_CACHE`` or the user's cache folder."""
    return Path(os.environ.get("KDEDGE_CACHE") or platformdirs.user_cache_dir("kdedge"))


def cache_bytes() -> int:
    """Return the size of the files in the cache on the disk; sparse files have holes."""
    files = (Path(folder, name) for folder, _, names in os.walk(cache_dir()) for name in names)
    return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in map(Path.lstat, files))
