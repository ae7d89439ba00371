import errno

import pytest

from pipeline import files
from pipeline.errors import StageError
from pipeline.files import write_atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_atomic(path, b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StageError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
