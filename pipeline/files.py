"""Single files: hashed, read with clear errors, written whole or not at all."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, StageError

__all__ = ["disk_errors", "file_sha256", "load_json", "write_atomic", "write_json"]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that after a crash either the old or the new content is there.

    Raises:
        StageError: The disk is full or the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def load_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object that must have ``keys``.

    Raises:
        InputError: The file is missing, damaged, or lacks a key.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", "make it again with the stage that wrote it") from error
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}", "make it again with the stage that wrote it")
    result: dict[str, Any] = value
    return result


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn operating-system errors while writing under ``path`` into errors for the user."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        culprit = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        reason = error.strerror or str(error)
        verb = "write" if culprit.is_relative_to(path.parent) else "use"
        raise StageError(f"cannot {verb} {culprit}: {reason}", "free some space, or give another --out") from error
