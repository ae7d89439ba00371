"""Train and validation: stratified, always the same, disjoint, and complete."""

from pathlib import Path

import numpy as np
import pytest

from kdedge.dataset import Split, split_train_val
from kdedge.errors import InputError
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset


def numbered(counts: list[int], shuffle_seed: int = 5) -> Split:
    """Images whose pixels are their index, so that a part tells which images it has."""
    labels = np.random.default_rng(shuffle_seed).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(len(labels)) // 256, np.arange(len(labels)) % 256
    return Split(images, labels.astype(np.int64))


def ids(split: Split) -> list[int]:
    return [int(high) * 256 + int(low) for high, low in split.images[:, 0, 0, :2]]


def test_parts_are_disjoint_complete_stratified_and_in_order() -> None:
    whole = numbered([100, 60, 40])
    train, val = split_train_val(whole, 0.1)
    assert np.bincount(train.labels).tolist() == [90, 54, 36]
    assert np.bincount(val.labels).tolist() == [10, 6, 4]
    assert sorted(ids(train) + ids(val)) == list(range(200))
    assert ids(train) == sorted(ids(train))
    assert ids(val) == sorted(ids(val))
    assert (train.labels == whole.labels[ids(train)]).all()
    assert (val.labels == whole.labels[ids(val)]).all()
    assert train.labels.dtype == np.int64
    assert train.images.dtype == np.uint8
    assert len(train) == 180


def test_known_parts() -> None:
    """Pins the split (NumPy 2.4): with other parts, a reused teacher would have seen the validation images."""
    assert ids(split_train_val(numbered([10, 10]), 0.2)[1]) == [3, 15, 17, 18]


def test_train_size_is_exact_stratified_and_leaves_validation_alone() -> None:
    whole = numbered([100, 60, 40])
    train, val = split_train_val(whole, 0.1)
    small, same_val = split_train_val(whole, 0.1, train_size=61)
    assert np.bincount(small.labels).tolist() == [31, 18, 12]  # 30.5, 18.3, 12.2
    assert set(ids(small)) < set(ids(train))
    assert ids(val) == ids(same_val)
    full, _ = split_train_val(whole, 0.1, train_size=180)
    assert ids(full) == ids(train)


def test_small_classes_get_an_image_in_each_part() -> None:
    train, val = split_train_val(numbered([100, 2, 3]), 0.01)
    assert np.bincount(val.labels).tolist() == [1, 1, 1]
    assert np.bincount(train.labels).tolist() == [99, 1, 2]
    assert np.bincount(split_train_val(numbered([9, 2]), 0.9)[0].labels).tolist() == [1, 1]


def test_class_with_one_image_cannot_be_divided() -> None:
    with pytest.raises(InputError, match="class number 1 has 1 image, expected at least 2") as caught:
        split_train_val(numbered([10, 1]), 0.1)
    assert caught.value.exit_code == 2


def test_train_size_beyond_what_is_there() -> None:
    with pytest.raises(InputError, match="--train-size 181 is more than the 180 training images") as caught:
        split_train_val(numbered([100, 60, 40]), 0.1, train_size=181)
    assert "--train-size 180" in caught.value.hint


def test_train_size_that_leaves_a_class_empty() -> None:
    whole = numbered([200, 20])
    with pytest.raises(InputError, match="--train-size 4 leaves class number 1 without a training image") as caught:
        split_train_val(whole, 0.1, train_size=4)
    assert "at least --train-size 11" in caught.value.hint
    small, _ = split_train_val(whole, 0.1, train_size=11)
    assert np.bincount(small.labels).tolist() == [10, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar", "unknown data set --data cifar \\(did you mean 'cifar10'\\?\\)"),
        ("smaple", "did you mean 'sample'"),
        ("folders:x", "did you mean 'folder'"),
        ("mnist", "unknown data set --data mnist$"),
        ("folder", "unknown data set --data folder"),
        ("folder:", "has no path"),
        ("windows:", "has no path"),
    ],
)
def test_unknown_source(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(DataConfig(source=source))
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", ["photos", "./photos", "some/where", "/photos", "~/photos", "~"])
def test_a_path_needs_no_prefix(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert DataConfig(source="photos").source == "photos"
    (tmp_path / "photos").mkdir()
    assert DataConfig(source=path) == DataConfig(source=f"folder:{path}")
    assert DataConfig(source=f"folder:{path}").source == f"folder:{path}"


def test_names_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    assert DataConfig(source="sample").source == "sample"
    assert DataConfig(source="./sample").source == "folder:./sample"
