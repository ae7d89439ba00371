"""Download files, with progress. `fetch` checks a known hash. The hash is checked at every use; the write is atomic.

The download fails if the server sends almost nothing for `STALL_S` seconds.
"""

import os
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

from kdedge import __version__
from kdedge.errors import StageError
from kdedge.files import file_sha256
from kdedge.progress import log, track, warn

__all__ = ["fetch", "receive"]

STALL_S = 30.0
_SLOWEST_BYTES_PER_S = 10_000
_MB = 1_000_000
_CHUNK = 1 << 16


def fetch(url: str, path: Path, sha256_prefix: str) -> None:
    """Download a file to ``path`` unless the file with this hash is there.

    Args:
        url: Address of the file.
        path: Target. A file with another hash is replaced.
        sha256_prefix: First digits of the file's SHA-256, in lower case.

    Raises:
        StageError: The download fails, has another hash, or cannot be written.
    """
    try:
        if _matches(path, sha256_prefix):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if _matches(path, sha256_prefix):
                return  # another process downloaded it during the wait for the lock
            if path.is_file():
                warn(
                    f"{path} is damaged: its SHA-256 begins with {file_sha256(path)[: len(sha256_prefix)]}, "
                    f"expected {sha256_prefix}; downloading it again"
                )
            _download(url, path, sha256_prefix)
    except OSError as error:
        raise StageError(f"cannot download {url} to {path}: {error}") from error


def _matches(path: Path, sha256_prefix: str) -> bool:
    return path.is_file() and file_sha256(path).startswith(sha256_prefix)


def _download(url: str, path: Path, sha256_prefix: str) -> None:
    log(f"downloading {url} to {path}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            receive(url, file, path.name)
        digest = file_sha256(partial)
        if not digest.startswith(sha256_prefix):
            size = partial.stat().st_size
            raise OSError(f"got {size:,} bytes with SHA-256 {digest}, expected a SHA-256 of {sha256_prefix}…")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def receive(url: str, file: BinaryIO, name: str, etag: str = "", begun: Callable[[str], object] = str) -> None:
    """Write the content of an address to an open file, with progress.

    Args:
        url: The address.
        file: Open for writing.
        name: Name of the content, for the progress bar.
        etag: ETag of the content that ``file`` has the beginning of. The server sends the rest of the same content, or
            all of another.
        begun: Called with the ETag of the content before it is written, empty if its download cannot be resumed.

    Raises:
        OSError: The connection fails, ends early or is too slow, or the file cannot be written.
    """
    received = file.seek(0, os.SEEK_END) if etag else 0
    headers = {"User-Agent": f"kdedge/{__version__}"}
    if received:
        headers |= {"Range": f"bytes={received}-", "If-Range": etag}
    try:
        with urlopen(Request(url, headers=headers), timeout=STALL_S) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                received = file.seek(0)
            file.truncate()
            found = response.headers.get("ETag") or ""
            begun("" if found.startswith("W/") else found)
            total = received + int(response.headers.get("Content-Length") or 0)
            with track(f"downloading {name} (MB)", -(-total // _MB)) as progress:
                progress.advance(received // _MB)
                window_start, window_bytes = time.monotonic(), 0
                while chunk := response.read1(_CHUNK):
                    file.write(chunk)
                    progress.advance((received + len(chunk)) // _MB - received // _MB)
                    received, window_bytes = received + len(chunk), window_bytes + len(chunk)
                    window_s = time.monotonic() - window_start
                    if window_s > STALL_S:
                        if window_bytes < _SLOWEST_BYTES_PER_S * window_s:
                            raise TimeoutError(f"the server sent only {window_bytes:,} bytes in {window_s:.0f} s")
                        window_start, window_bytes = time.monotonic(), 0
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError) and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and received:
            receive(url, file, name, begun=begun)  # the file has all or more
            return
        reason = error.reason if type(error) is URLError else error
        raise OSError(str(reason) or type(error).__name__) from error
    if received < total:
        raise OSError(f"the connection ended after {received:,} of {total:,} bytes")
