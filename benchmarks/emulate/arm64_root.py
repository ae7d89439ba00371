"""A folder with an arm64 Python, numpy and onnxruntime for `kdedge.benchmarks.emulate.emulator` to run under qemu.

It is built once in the cache, without root rights and without changing the system: apt with its own state downloads the
arm64 packages from the package sources of this system, dpkg-deb unpacks them, pip adds the aarch64 wheels. The folder
has no files of the host, so a copy of it serves a host without apt.

    python -m kdedge.benchmarks.emulate.arm64_root
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from kdedge.errors import StageError
from kdedge.files import cache_dir
from kdedge.progress import log

__all__ = ["ONNXRUNTIME", "Root", "prepare_arm64_root", "root_path"]

# The newest version that runs under qemu 7.2: 1.28.0, 1.29.0, 1.31.1 and 1.32.0 crash there at import.
ONNXRUNTIME = "1.27.0"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


@dataclass(frozen=True)
class Root:
    """An arm64 root.

    Attributes:
        path: Argument of qemu's ``-L``.
        python: Its interpreter.
        site: Folder of its numpy and onnxruntime.
    """

    path: Path
    python: Path
    site: Path


def root_path() -> Path:
    """Return the folder of the root, whether it exists or not."""
    return cache_dir().absolute() / "emulate" / f"arm64-onnxruntime-{ONNXRUNTIME}"


def prepare_arm64_root() -> Root:
    """Return the arm64 root; build it if it is missing.

    Raises:
        StageError: A tool is missing, packages or wheels are unavailable, or the cache cannot be written.
    """
    path = root_path()
    if not path.is_dir():
        with _cache_errors(path), _locked(path):
            if not path.is_dir():  # else another process built it during the wait
                log(f"emulate: building {path} from Debian's arm64 packages and aarch64 wheels (60 MB to fetch)")
                partial = path.with_name(f"{path.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                _build(partial)
                partial.rename(path)
    return Root(path, _find_python(path), path / "site")


def _build(root: Path) -> None:
    """Build the root in a new folder."""
    apt = root / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Acquire::Languages": "none",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
    }
    command = ["apt-get", "-q", "-y", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    # A source without arm64 fails the update; the next command fails if packages are missing.
    _call("fetching arm64 packages", [*command, "update"], may_fail=True)
    _call("fetching arm64 packages", [*command, "--download-only", "--no-install-recommends", "install", *_PACKAGES])
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        _call(f"unpacking {package.name}", ["dpkg-deb", "--extract", str(package), str(root)])
    if not (root / "lib").exists():
        # From Debian 13 on, packages have only /usr/lib; the loader is still /lib/ld-linux-aarch64.so.1.
        (root / "lib").symlink_to("usr/lib")
    shutil.rmtree(apt)
    version = _find_python(root).name.removeprefix("python")
    _call(
        "fetching aarch64 wheels",
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
            "--target", str(root / "site"), "--no-deps", "--no-compile", "--only-binary=:all:",
            "--implementation", "cp", "--python-version", version,
            *(part for platform in _PLATFORMS for part in ("--platform", platform)),
            "numpy>=2,<3", f"onnxruntime=={ONNXRUNTIME}",
        ],
    )  # fmt: skip


def _call(task: str, command: list[str], *, may_fail: bool = False) -> None:
    """Run a tool; raise an error with the missing tool or its last line."""
    try:
        done = subprocess.run(
            command, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise StageError(f"{task} needs {error.filename}, which is not installed", _hint()) from error
    if done.returncode and not may_fail:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise StageError(f"{task} failed: {lines[-1] if lines else f'exit code {done.returncode}'}", _hint())


def _hint() -> str:
    return f"the build needs Debian with apt-get, dpkg-deb and pip; elsewhere copy {root_path()} from such a machine"


def _find_python(root: Path) -> Path:
    """Return the interpreter in the root."""
    for path in sorted((root / "usr" / "bin").glob("python3.*")):
        if re.fullmatch(r"python3\.\d+", path.name):
            return path
    raise StageError(f"{root} has no usr/bin/python3.N", "remove the folder; kdedge builds it again")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock for building the root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into an error with the cache folder."""
    try:
        yield
    except OSError as error:
        raise StageError(
            f"cannot write to {path}: {error.strerror or error}", "set KDEDGE_CACHE to a writable folder"
        ) from error


if __name__ == "__main__":
    print(prepare_arm64_root().path)
