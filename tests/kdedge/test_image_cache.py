"""Images above a limit are decoded into a memory-mapped file: once, resumed after a kill, repaired after damage."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from image_folders import make_tree, save

from kdedge import image_cache
from kdedge.errors import InputError, StageError
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset, training_images

COUNT, SIZE = 100, 16  # four blocks, the last one short
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "IN_MEMORY", 1000)
    return tmp_path / "cache" / "images"


def decoded(calls: list[int] | None = None, key: str = "a", fail_at: int = COUNT) -> np.ndarray:
    def decode(index: int) -> np.ndarray:
        if index >= fail_at:
            raise InputError("a bad image", "")
        if calls is not None:
            calls.append(index)
        return PIXELS[index]

    return image_cache.decoded_images(COUNT, SIZE, lambda: key, decode, "reading")


def test_large_images_are_mapped_and_decoded_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = decoded()
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert np.array_equal(images, PIXELS)
    (path,) = folder.glob("*.npy")
    announced = capsys.readouterr().err
    assert f"decoding 100 images of 16 x 16 pixels into {path} (0.0 GB; you may delete it" in announced
    assert np.array_equal(np.load(path), PIXELS)
    calls: list[int] = []
    assert np.array_equal(decoded(calls), PIXELS)
    assert calls == []
    decoded(calls, key="b")
    assert len(calls) == COUNT
    assert len(list(folder.glob("*.npy"))) == 2


def test_small_images_stay_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "IN_MEMORY", PIXELS.nbytes)
    images = decoded()
    assert type(images) is np.ndarray
    assert np.array_equal(images, PIXELS)
    assert not folder.exists()


def _flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


DAMAGES: dict[str, tuple[Callable[[Path], object], range]] = {
    "a bit": (_flip_a_bit, range(96, 100)),
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), range(32, 100)),
    "no sums": (lambda path: path.with_suffix(".crc32").unlink(), range(100)),
    "short sums": (lambda path: os.truncate(path.with_suffix(".crc32"), 18), range(64, 100)),
    "another header": (lambda path: path.write_bytes(b"x" * path.stat().st_size), range(100)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_damaged_blocks_are_decoded_again(folder: Path, damage: str) -> None:
    decoded()
    (path,) = folder.glob("*.npy")
    change, again = DAMAGES[damage]
    change(path)
    calls: list[int] = []
    assert np.array_equal(decoded(calls), PIXELS)
    assert sorted(calls) == list(again)


def test_a_failed_decoding_is_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="a bad image"):
        decoded(fail_at=70)
    calls: list[int] = []
    assert np.array_equal(decoded(calls), PIXELS)
    assert sorted(calls) == list(range(64, 100))
    assert "(0.0 GB, 50 % are already there; you" in capsys.readouterr().err


KILLED = """
import os, sys, threading, numpy as np
from kdedge import image_cache
image_cache.IN_MEMORY = 1000
def decode(index):
    if sys.argv[1] == "killed" and index == 70:
        threading.Event().wait(0.2)
        os._exit(9)
    return np.full((16, 16, 3), index, np.uint8)
images = image_cache.decoded_images(100, 16, lambda: "key", decode, "reading")
assert (images == np.arange(100)[:, None, None, None]).all()
"""


def test_a_killed_process_is_resumed_and_two_can_decode_the_same(folder: Path) -> None:
    def start(what: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", KILLED, what]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    killed = start("killed")
    assert killed.communicate()[1].count("decoding") == 1
    assert killed.returncode == 9
    both = [start("complete") for _ in range(2)]
    texts = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum("decoding 100 images" in text for text in texts) == 1
    assert sum("already there" in text for text in texts) == 1


def test_too_little_space_is_an_error_before_the_first_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=PIXELS.nbytes - 1))
    calls: list[int] = []
    with pytest.raises(
        StageError, match=r"100 images of 16 x 16 pixels need 0\.0 GB in .*images, where 0\.0"
    ) as caught:
        decoded(calls)
    assert calls == []
    assert "KDEDGE_CACHE" in caught.value.hint


def test_a_run_has_the_same_images_from_memory_and_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "data", {"a": 30, "b": 40})
    for source, size in ((str(root), 16), ("sample", 40)):
        config = DataConfig(source=source, image_size=size, train_size=40)
        dataset = open_dataset(config)
        mapped = [*training_images(dataset, config), dataset.test()]
        assert all(isinstance(part.images, np.memmap) for part in mapped)
        with monkeypatch.context() as patch:
            patch.setattr(image_cache, "IN_MEMORY", 1 << 30)
            monkeypatch.setattr("kdedge.pipeline.data.sources._kept", {})
            kept = [*training_images(dataset, config), dataset.test()]
        for one, other in zip(mapped, kept, strict=True):
            assert type(other.images) is np.ndarray
            assert np.array_equal(one.images, other.images)
            assert np.array_equal(one.dataset_indices, other.dataset_indices)


def test_all_unreadable_images_are_named(folder: Path, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "data", {"a": 30, "b": 40})
    dataset = open_dataset(DataConfig(source=str(root), image_size=16))
    for name in ("003", "020"):
        save(root / "b" / f"{name}.png")
        data = (root / "b" / f"{name}.png").read_bytes()
        (root / "b" / f"{name}.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"(?s)003\.png.*020\.png|2 images"):
        dataset.train(), dataset.test()
