import errno
import os
import tempfile

import pytest

from kdedge import files
from kdedge.errors import StageError
from kdedge.files import parse_json, read_json, read_toml, write_atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_atomic(path, b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StageError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "the unfinished file would fill the disk further"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a": [' + "1" + "0" * 400 + "]}", "a whole number of more than 64 bits"),
        ("1" * 5000, "digits"),
    ],
)
def test_json_that_would_break_what_comes_later_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels"),
        ("a = 1" + "0" * 400, "a whole number of more than 64 bits"),
        ("a = 0x" + "f" * 9000, "a whole number of more than 64 bits"),
    ],
)
def test_toml_that_would_break_what_comes_later_is_refused(text, message, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_toml(tmp_path / "a.toml")


def test_files_are_read_with_and_without_a_byte_order_mark_up_to_a_size(tmp_path, monkeypatch):
    for mark in ("", "\ufeff"):
        (tmp_path / "a").write_text(f'{mark}{{"a": 1}}', encoding="utf-8")
        (tmp_path / "b").write_text(f"{mark}a = 1", encoding="utf-8")
        assert read_json(tmp_path / "a") == read_toml(tmp_path / "b") == {"a": 1}
    monkeypatch.setattr(files, "_MOST_BYTES", 7)
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "a")


FREE = "free some space"
LIMIT = "raise the limit on open files: ulimit -n 4096"
OTHER = "give another --out"


@pytest.mark.parametrize(
    ("number", "name", "message", "hint"),
    [
        (errno.ENOSPC, "run/x", "cannot write {}: No space left on device", f"{FREE}, or {OTHER}"),
        (errno.EDQUOT, "run/x", "cannot write {}: Disk quota exceeded", f"{FREE}, or {OTHER}"),
        (errno.ENOSPC, "else/x", "cannot write {}: No space left on device", "free some space there"),
        (
            errno.EROFS,
            "run/x",
            "cannot write {}: Read-only file system",
            "check its permissions, or give another --out",
        ),
        (errno.EACCES, "else/x", "cannot use {}: Permission denied", "check its permissions"),
        (errno.ENOENT, "else/x", "cannot use {}: No such file or directory", ""),
        (errno.ECONNRESET, None, "the system refused: Connection reset by peer", ""),
        (
            errno.EMFILE,
            "run/x",
            "the system refused: Too many open files",
            LIMIT,
        ),
    ],
)
def test_an_error_of_the_system_is_reported_as_what_it_is(number, name, message, hint, tmp_path):
    path = tmp_path / name if name else None
    with pytest.raises(StageError) as caught, files.disk_errors(tmp_path / "run" / "partial"):
        raise OSError(number, os.strerror(number), *([str(path)] if path else []))
    assert (str(caught.value), caught.value.hint) == (message.format(path), hint)


def test_a_full_disk_of_temporary_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StageError, match=r"cannot write .*: No space left on device") as caught, files.scratch_dir():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write to an open file does, without a name
    assert caught.value.hint == f"free some space, or set TMPDIR to another folder than {tmp_path}"
    assert not list(tmp_path.iterdir())
