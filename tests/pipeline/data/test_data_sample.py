"""The images that are shipped."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from kdedge.errors import InputError
from kdedge.pipeline.data import sample
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset


def test_shape_labels_and_stratification() -> None:
    dataset = open_dataset(DataConfig(source="sample"))
    assert dataset.name == "sample"
    assert len(dataset.class_names) == 10
    assert dataset.image_size == 32
    for split, count in ((dataset.train(), 4000), (dataset.test(), 1000)):
        assert split.images.shape == (count, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert (np.bincount(split.labels) == count // 10).all()


def test_pixels_are_the_official_ones() -> None:
    """Pins the decoded pixels, checked against the official batches when the sample was made."""
    dataset = open_dataset(DataConfig(source="sample"))
    assert hashlib.sha256(dataset.train().images.tobytes()).hexdigest() == TRAIN_PIXELS
    assert hashlib.sha256(dataset.test().images.tobytes()).hexdigest() == TEST_PIXELS


TRAIN_PIXELS = "e5830cc2613226d8ff53a2b7e4285053e4903baef0556fe9c4ec3fa49d7522a1"
TEST_PIXELS = "4b9aed7842d477c405566bb14236d5c48f09338c957c59ffb0a8a842de2d9cfc"


def test_no_image_twice() -> None:
    dataset = open_dataset(DataConfig(source="sample"))
    images = np.concatenate([dataset.train().images, dataset.test().images])
    assert len({image.tobytes() for image in images}) == 5000


def test_size_of_the_files() -> None:
    folder = Path(sample.__file__).parent
    assert {path.name for path in folder.glob("*.webp")} == set(sample.SHA256)
    assert sum((folder / name).stat().st_size for name in sample.SHA256) <= 9_000_000


def test_hashes_depend_on_part_and_size() -> None:
    small, large = sample.open_sample(32), sample.open_sample(48)
    hashes = {small.train_sha256(), small.test_sha256(), large.train_sha256(), large.test_sha256()}
    assert len(hashes) == 4
    assert all(len(digest) == 64 for digest in hashes)


def test_resized() -> None:
    split = sample.open_sample(16).test()
    assert split.images.shape == (1000, 16, 16, 3)
    exact = sample.open_sample(32).test().images.mean(axis=(1, 2))
    assert np.abs(split.images.mean(axis=(1, 2)) - exact).max() < 3


def test_sheet_there_and_back() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    sheet = sample.to_sheet(images)
    assert sheet.shape == (96, 320, 3)
    assert (sheet[32:64, 64:96] == images[12]).all()
    assert (sample.from_sheet(sheet) == images).all()


def test_altered_and_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sample.SHA256:
        (tmp_path / name).write_bytes((Path(sample.__file__).parent / name).read_bytes())
    monkeypatch.setattr(sample, "_FOLDER", tmp_path)
    dataset = sample.open_sample(32)
    (tmp_path / "test.webp").write_bytes((tmp_path / "test.webp").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"test.webp was altered: SHA-256 \w{64}, expected 87fa088b") as caught:
        sample.open_sample(32)
    assert caught.value.exit_code == 2
    assert "install" in caught.value.hint
    (tmp_path / "test.webp").unlink()
    with pytest.raises(InputError, match=r"test.webp cannot be read: No such file"):
        sample.open_sample(32)
    assert len(dataset.train()) == 4000, "train() opened the test images"
