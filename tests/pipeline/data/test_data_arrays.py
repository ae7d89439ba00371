"""Images in a NumPy file: shapes, labels, parts, groups, and every mistake."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdedge.dataset import split_train_val
from kdedge.errors import InputError
from kdedge.images import read_image
from kdedge.pipeline.data import arrays
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.data.summary import summarise
from kdedge.pipeline.data.user_images import UserImages
from kdedge.resizing import resize_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 9, 12, 3), np.uint8)
LABELS = np.arange(24) % 3


def opened(folder: Path, /, compressed: bool = False, **arrays: object) -> UserImages:
    (np.savez_compressed if compressed else np.savez)(folder / "my.npz", **arrays)  # type: ignore[arg-type]
    dataset = open_dataset(DataConfig(source=str(folder / "my.npz"), image_size=16))
    assert isinstance(dataset, UserImages)
    return dataset


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_images_become_square_as_the_option_says(tmp_path: Path, mode: str) -> None:
    np.savez(tmp_path / "my.npz", x=PIXELS, y=LABELS)
    for index, pixels in enumerate(PIXELS):
        (tmp_path / "my" / str(LABELS[index])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "my" / str(LABELS[index]) / f"{index:02}.png")
    for source in ("my.npz", "my"):
        dataset = open_dataset(DataConfig(source=str(tmp_path / source), image_size=16, resize=mode))
        assert isinstance(dataset, UserImages)
        for pixels, item in zip(dataset.train().images, dataset.train_items, strict=True):
            number = int(item.name[2:-1] if source == "my.npz" else Path(item.name).stem)
            assert np.array_equal(pixels, resize_image(Image.fromarray(PIXELS[number]), 16, mode))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_are_resized_as_files_are(tmp_path: Path, channels: "int | None") -> None:
    pixels = PIXELS[..., 0] if channels is None else PIXELS[..., :channels]
    dataset = opened(tmp_path, x=pixels, y=LABELS)
    assert (dataset.name, dataset.class_names) == ("arrays:my.npz", ("0", "1", "2"))
    train, test = dataset.train(), dataset.test()
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([6, 6, 6], [2, 2, 2])
    for split, items in ((train, dataset.train_items), (test, dataset.test_items)):
        for pixels_read, label, item in zip(split.images, split.labels, items, strict=True):
            index = int(item.name[2:-1])
            Image.fromarray(PIXELS[index, ..., 0] if channels != 3 else PIXELS[index]).save(tmp_path / "image.png")
            assert np.array_equal(pixels_read, dataset.spec.of_rgb(read_image(tmp_path / "image.png", 16)))
            assert label == LABELS[index]
    assert dataset.items[0].overview((4, 4)).size == (12, 9)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], order: str, compressed: bool
) -> None:
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    expected = opened(tmp_path, compressed, x=PIXELS, y=LABELS)
    hashes, images = expected.train_sha256(), expected.train().images
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    arrays._load.cache_clear()
    arrays._digests.cache_clear()
    dataset = opened(tmp_path, compressed, x=np.asarray(PIXELS, order=order), y=LABELS)
    assert isinstance(dataset.train_items[0].array.images(), np.memmap)
    assert dataset.train_sha256() == hashes
    assert np.array_equal(dataset.train().images, images)
    assert ("unpacking x of" in capsys.readouterr().err) == compressed
    unpacked = list((tmp_path / "cache").rglob("*.npy"))
    assert len(unpacked) == compressed
    for path in unpacked:  # a damaged file is unpacked again
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        arrays._load.cache_clear()
        assert np.array_equal(dataset.train().images, images)


def test_a_damaged_large_array_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    np.savez(tmp_path / "my.npz", x=PIXELS, y=LABELS)
    data = bytearray((tmp_path / "my.npz").read_bytes())
    data[data.index(PIXELS[3].tobytes())] ^= 1
    (tmp_path / "my.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"my\.npz.*CRC"):
        open_dataset(DataConfig(source=str(tmp_path / "my.npz"), image_size=16)).train_sha256()


def test_compression_and_names_of_the_training_arrays_change_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path, x=PIXELS, y=LABELS)
    hashes = first.train_sha256(), first.test_sha256()
    again = opened(tmp_path, compressed=True, y=LABELS.astype(str), x=PIXELS)
    assert (again.train_sha256(), again.test_sha256()) == hashes
    keras = opened(tmp_path, x_train=PIXELS[:12], y_train=LABELS[:12], x_test=PIXELS[12:], y_test=LABELS[12:])
    assert np.array_equal(keras.test().labels, LABELS[12:])


def test_parts_of_the_file_are_used(tmp_path: Path) -> None:
    parts = {"": slice(0, 12), "_val": slice(12, 18), "_test": slice(18, 24)}
    arrays = {f"x{part}": PIXELS[rows] for part, rows in parts.items()}
    arrays |= {f"y{part}": LABELS[rows] for part, rows in parts.items()}
    dataset = opened(tmp_path, **arrays)
    train, val = split_train_val(dataset.train(), 0.5)
    assert [len(train), len(val), len(dataset.test())] == [12, 6, 6]
    assert np.array_equal(val.labels, LABELS[12:18])
    test_only = opened(tmp_path, x_test=PIXELS[:2], y_test=LABELS[:2])
    assert test_only.labelled_as(("0", "1", "2")).test_counts() == [1, 1, 0]
    with pytest.raises(InputError, match="has no train array"):
        test_only.train()


def test_numbers_are_in_order_and_texts_are_sorted(tmp_path: Path) -> None:
    assert opened(tmp_path, x=PIXELS, y=np.array([2, 10, -1] * 8)).class_names == ("-1", "2", "10")
    assert opened(tmp_path, x=PIXELS, y=np.array(["b", "C", "ä"] * 8)).class_names == ("C", "b", "ä")
    assert opened(tmp_path, x=PIXELS, y=np.array([b"b", "ä".encode()] * 12)).class_names == ("b", "ä")


def test_groups_never_cross_parts(tmp_path: Path) -> None:
    group = np.repeat(np.arange(8), 3)
    dataset = opened(tmp_path, x=PIXELS, y=LABELS, group=group)
    parts = (dataset.train_items, dataset.val_items, dataset.test_items)
    groups = [{item.group for item in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 8
    assert all(groups)
    assert dataset.train_sha256() != opened(tmp_path, x=PIXELS, y=LABELS, group=group[::-1]).train_sha256()


def test_splits_have_the_groups_of_their_images(tmp_path: Path) -> None:
    arrays = {"x": PIXELS, "y": LABELS, "x_test": PIXELS + 1, "y_test": LABELS}
    dataset = opened(tmp_path, **arrays, group=np.arange(24) // 3, group_test=np.array(["a", "", "b"] * 8))
    groups = dataset.test().groups
    assert groups is not None
    assert groups.tolist() == ["a", "", "b"] * 8
    for part in split_train_val(dataset.train(), 0.2):
        assert part.groups is not None
        assert part.groups.tolist() == [dataset.items[index].group for index in part.dataset_indices]
    assert opened(tmp_path, **arrays).test().groups is None
    with pytest.raises(InputError, match=r"the group 5 of .* is in group and in group_test"):
        opened(tmp_path, **arrays, group=np.arange(24) // 3, group_test=np.arange(24) + 5)


def test_copies_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path, x=PIXELS, y=LABELS, x_test=PIXELS[3:9], y_test=LABELS[3:9])
    summary, _ = summarise(DataConfig(source=str(tmp_path / "my.npz"), image_size=16))
    assert summary["duplicates"]["test_copies_examples"][0] == ["x_test[0]", "x[3]"]
    assert summary["source_sizes"]["median"] == [12, 9]
    assert "6 of 6 test images are copies" in capsys.readouterr().err


def test_train_reads_no_array_of_test_images(tmp_path: Path) -> None:
    dataset = opened(tmp_path, x=PIXELS, y=LABELS, x_test=PIXELS[:6], y_test=LABELS[:6])
    read = []
    for item in dataset.test_items:
        object.__setattr__(item.array, "images", lambda: read.append(1))  # type: ignore[attr-defined]
    dataset.train()
    dataset.train_sha256()
    assert not read


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS}, "has the arrays x$"),
        ({"y": LABELS}, "has the arrays y$"),
        ({"images": PIXELS, "labels": LABELS}, "has the arrays images, labels$"),
        ({"x": PIXELS, "y": LABELS, "x_test": PIXELS}, "has the arrays x, y, x_test$"),
        ({"x_val": PIXELS, "y_val": LABELS}, "has the arrays x_val, y_val$"),
        ({"x": PIXELS / 255, "y": LABELS}, r"x of .*my.npz is float64 \[24, 9, 12, 3\]"),
        ({"x": PIXELS.transpose(0, 3, 1, 2), "y": LABELS}, r"x of .* is uint8 \[24, 3, 9, 12\]"),
        ({"x": PIXELS.reshape(24, -1), "y": LABELS}, r"x of .* is uint8 \[24, 324\]"),
        ({"x": PIXELS[:0], "y": LABELS[:0]}, r"x of .* is uint8 \[0, 9, 12, 3\]"),
        ({"x": PIXELS, "y": LABELS[:20]}, "y of .* has 20 values for 24 images in x"),
        ({"x": PIXELS, "y": LABELS, "group": LABELS[:20]}, "group of .* has 20 values for 24 images in x"),
        ({"x": PIXELS, "y": LABELS * 0.5}, r"y of .* is float64 \[24\]"),
        ({"x": PIXELS, "y": LABELS[:, None]}, r"y of .* is int64 \[24, 1\]"),
        ({"x": PIXELS, "y": np.array(["a", ""] * 12)}, r"y\[1\] of .* is '', which cannot be a label"),
        ({"x": PIXELS, "y": np.array(["a", "b\nc"] * 12)}, r"y\[1\] of .* is 'b.nc', which cannot be a label"),
        ({"x": PIXELS, "y": np.array([b"a", b"\xff"] * 12)}, r"cannot read the data file .*utf-8"),
        ({"x": PIXELS, "y": np.array(["a", 1] * 12, object)}, "cannot read the data file .*: Object arrays"),
        ({"x": PIXELS, "y": LABELS, "x_test": PIXELS[:2], "y_test": [0, 7]}, r"y_test\[1\] of .* is 7, a class that y"),
        ({"x": PIXELS, "y": np.zeros(24, int)}, r"has 1 class \(0\), expected at least two"),
        ({"x": PIXELS[:6], "y": [0, 0, 0, 0, 1, 1]}, "the class 1 of .*my.npz has 2 images, too few to divide"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    tmp_path: Path, arrays: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, **arrays)
    assert caught.value.hint
    assert "ignoring" not in capsys.readouterr().err


def test_files_that_are_missing_damaged_or_changed(tmp_path: Path) -> None:
    config = DataConfig(source=str(tmp_path / "my.npz"), image_size=16)
    with pytest.raises(InputError, match=r"the data file .*my.npz does not exist"):
        open_dataset(config)
    (tmp_path / "my.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"cannot read the data file .*: File is not a zip file"):
        open_dataset(config)
    dataset = opened(tmp_path, x=PIXELS, y=LABELS)
    data = bytearray((tmp_path / "my.npz").read_bytes())
    data[1000] ^= 1
    (tmp_path / "my.npz").write_bytes(data)
    with pytest.raises(InputError, match="has changed"):
        dataset.train()
    with pytest.raises(InputError, match=r"cannot read the data file .*Bad CRC"):
        open_dataset(config).train()
