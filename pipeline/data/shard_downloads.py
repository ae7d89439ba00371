"""Downloads WebDataset shards into the cache, where they are read like local ones.

The folder in the cache is named by a hash of the address that the shards share. A finished shard has a record next to
it with its address, ETag, size and SHA-256. It is used without a request, so a run repeats without a network, also
after the server's file changed. An interrupted download resumes if the server's file has the same ETag.
"""

import hashlib
import io
import re
import tarfile
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from kdedge.download import receive
from kdedge.errors import InputError, StageError
from kdedge.files import cache_dir, file_sha256, load_json, write_atomic, write_json
from kdedge.pipeline.data.options import without_query
from kdedge.pipeline.data.shards import expand_braces
from kdedge.progress import log, warn

__all__ = ["fetch_shards", "is_address"]

_MISSING = (403, 404)  # object stores that do not list files answer 403 for a missing one


def is_address(path: str) -> bool:
    """Return whether a path is an address of the web."""
    return re.match(r"https?:/", path, re.IGNORECASE) is not None


def fetch_shards(address: str) -> str:
    """Return the pattern of the local copies of some shards, and download those that are missing or damaged.

    Args:
        address: Address of a shard, or of several with braces such as ``{000..146}``.

    Raises:
        InputError: The address is not one of ``.tar`` files.
        StageError: A download fails, or its result cannot be written.
    """
    scheme, host, path, query, _ = urlsplit(re.sub(r"^(https?):/+", r"\1://", address, flags=re.IGNORECASE))
    names = path.lstrip("/").split("/")
    if not names[-1].endswith(".tar") or not host or ".." in names or re.search(r"[*?\[]", path):
        raise InputError(
            f"{address} is not the address of .tar files",
            "give the address of a shard, or of several as in 'shards:https://HOST/train-{000..012}.tar'",
        )
    shared = list(takewhile(lambda name: "{" not in name, names[:-1]))
    pattern, base = "/".join(names[len(shared) :]), "/".join(shared)
    folder = cache_dir() / "shards" / hashlib.sha256(f"{scheme}://{host}/{base}".encode()).hexdigest()[:16]
    shards = {folder / name: urlunsplit((scheme, host, f"{base}/{name}", query, "")) for name in expand_braces(pattern)}
    missing = {file: url for file, url in shards.items() if not _as_recorded(file)}
    shard = address
    try:
        if missing:
            log(f"downloading {len(missing)} of {len(shards)} shards to {folder}")
            folder.mkdir(parents=True, exist_ok=True)
            _fetch_classes(urlunsplit((scheme, host, f"{base}/classes.txt", query, "")), folder / "classes.txt")
        for number, (file, url) in enumerate(missing.items(), 1):
            shard = url
            _fetch(url, file, f"shard {number} of {len(missing)}, {file.name}")
    except OSError as error:
        raise StageError(
            f"cannot download {without_query(shard)} to {folder}: {error}",
            "check address and network, then run the same command again to resume; or copy the shards to this host "
            "and give --data shards:FOLDER",
        ) from error
    return str(folder / pattern)


def _record(file: Path) -> Path:
    return file.with_name(f".{file.name}.json")


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _recorded(file: Path) -> dict[str, Any]:
    """Return the record of a shard, empty if there is none."""
    try:
        return load_json(_record(file), ("sha256", "stamp"))
    except InputError:
        return {}


def _as_recorded(file: Path) -> bool:
    """Return whether a shard is there and has not been written since its download."""
    return file.is_file() and _recorded(file).get("stamp") == _stamp(file)


def _fetch(url: str, file: Path, title: str) -> None:
    """Download a shard, unless another process did."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if _as_recorded(file):
            return
        if file.is_file() and (known := _recorded(file)):
            if known["sha256"] == file_sha256(file):
                write_json(_record(file), known | {"stamp": _stamp(file)})
                return
            warn(f"{file} is damaged: its SHA-256 is not that of the download; downloading it again")
        partial, tag = (file.with_name(f".{file.name}.{kind}") for kind in ("partial", "etag"))
        etag = tag.read_text() if tag.is_file() and partial.is_file() else ""
        with partial.open("r+b" if etag else "wb") as stream:
            receive(url, stream, title, etag, begun=tag.write_text)
        if not tarfile.is_tarfile(partial):
            partial.unlink()
            raise OSError("the server sent something other than a .tar file")
        partial.replace(file)
        found = {
            "url": without_query(url),
            "etag": tag.read_text(),
            "sha256": file_sha256(file),
            "stamp": _stamp(file),
        }
        write_json(_record(file), found)
        tag.unlink()


def _fetch_classes(url: str, file: Path) -> None:
    """Download the list of classes, if the server has one."""
    if file.is_file():
        return
    content = io.BytesIO()
    try:
        receive(url, content, file.name)
    except OSError as error:
        if isinstance(error.__cause__, HTTPError) and error.__cause__.code in _MISSING:
            return
        raise
    write_atomic(file, content.getvalue())
