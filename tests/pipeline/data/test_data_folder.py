"""A user's own images in class folders: every layout, every mistake."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_folders import blues, failure, make_tree, open_folder, save
from PIL import Image

from kdedge.dataset import split_train_val
from kdedge.errors import InputError
from kdedge.images import convert_image
from kdedge.pipeline.data import items
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset, training_images
from kdedge.preprocessing import RESIZE_MODES


def test_train_and_test_folders(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"dog": 3, "cat": 2, "ant": 2})
    make_tree(tmp_path / "test", {"dog": 1, "cat": 2})
    dataset = open_folder(tmp_path)
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.image_size == 16
    assert dataset.name == f"folder:{tmp_path.name}"
    train, test = dataset.train(), dataset.test()
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [1, 1, 2]
    assert train.images.shape == (7, 16, 16, 3)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert train.images[0, 5, 5].tolist() == [100, 50, 5]


def test_other_folders_beside_train_and_test_are_ignored_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        make_tree(tmp_path / part, {"a": 2, "b": 2})
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "notes.txt").write_text("no image")
    assert len(open_folder(tmp_path).train()) == 4
    assert "using train and test, ignoring labels" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["", "train"])
def test_one_tree_is_divided_alike_every_time(tmp_path: Path, inside: str) -> None:
    make_tree(tmp_path / inside, {"a": 20, "b": 10, "c": 3})
    dataset = open_folder(tmp_path)
    train, test = dataset.train(), dataset.test()
    assert np.bincount(train.labels).tolist() == [16, 8, 2]
    assert np.bincount(test.labels).tolist() == [4, 2, 1]
    first, again = blues(dataset), blues(open_folder(tmp_path))
    assert first == again
    assert sorted(first[0] + first[1]) == list(range(33))
    split_train_val(train, 0.1)


def test_test_images_alone_are_those_of_the_whole_and_cannot_be_trained_on(tmp_path: Path) -> None:
    make_tree(tmp_path / "here" / "photos" / "train", {"ant": 2, "bee": 2})
    make_tree(tmp_path / "here" / "photos" / "test", {"ant": 2, "bee": 1})
    whole = open_folder(tmp_path / "here" / "photos")
    there = tmp_path / "device" / "photos"
    shutil.copytree(tmp_path / "here" / "photos" / "test", there / "test")
    alone = open_folder(there)
    assert (alone.class_names, alone.name, alone.test_sha256()) == (whole.class_names, whole.name, whole.test_sha256())
    assert np.array_equal(alone.test().images, whole.test().images)
    for use in (alone.train, alone.train_sha256):
        with pytest.raises(InputError, match="has no train folder") as caught:
            use()
        assert str(there / "train") in caught.value.hint


def test_test_images_alone_take_the_classes_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path / "here" / "photos" / "train", {"ant": 2, "bee": 2, "cow": 2})
    make_tree(tmp_path / "here" / "photos" / "test", {"ant": 2, "cow": 1})
    whole = open_folder(tmp_path / "here" / "photos")
    there = tmp_path / "device" / "photos"
    shutil.copytree(tmp_path / "here" / "photos" / "test", there / "test")
    classes, alone = ("ant", "bee", "cow"), open_folder(there)
    known = alone.labelled_as(classes)  # type: ignore[attr-defined]
    assert "has no images of bee" in capsys.readouterr().err
    assert known.class_names == classes
    assert known.test_sha256() == whole.test_sha256()
    assert known.test().labels.tolist() == [0, 0, 2]
    assert alone.labelled_as(("ant", "bee")) is alone  # type: ignore[attr-defined]
    assert whole.labelled_as((*classes, "dog")) is whole  # type: ignore[attr-defined]


def test_hidden_files_and_other_kinds_of_files_are_ignored(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 3, "b": 3, ".git": 1})
    for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / "a" / name).write_text("no image")
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "README.md").write_text("no class")
    save(tmp_path / "b" / "upper.JPG")
    dataset = open_folder(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert len(dataset.train()) + len(dataset.test()) == 7


def test_neither_part_opens_files_of_the_other(tmp_path: Path) -> None:
    dataset = open_folder(make_tree(tmp_path, {"a": 10, "b": 10}))
    train, train_sha = dataset.train(), dataset.train_sha256()
    test, test_sha = dataset.test(), dataset.test_sha256()
    files = {item.path: item.path.read_bytes() for item in dataset.test_items}  # type: ignore[attr-defined]
    for path in files:
        path.unlink()
    assert (dataset.train().images == train.images).all()
    assert dataset.train_sha256() == train_sha
    for path, data in files.items():
        path.write_bytes(data)
    for item in dataset.train_items:  # type: ignore[attr-defined]
        item.path.unlink()
    assert (dataset.test().images == test.images).all()
    assert dataset.test_sha256() == test_sha
    with pytest.raises(InputError, match=r"cannot read the image .*png: No such file"):
        dataset.train()
    with pytest.raises(InputError, match=r"cannot read the image .*png: No such file"):
        dataset.train_sha256()


def test_hash_follows_names_bytes_size_and_nothing_else(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"a": 2, "b": 2})
    make_tree(tmp_path / "test", {"a": 1})
    first, test_first = open_folder(tmp_path).train_sha256(), open_folder(tmp_path).test_sha256()
    assert len(first) == 64
    assert first != test_first
    os.utime(tmp_path / "train" / "a" / "000.png", (1, 1))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert open_folder(moved).train_sha256() == first
    assert open_folder(moved, size=17).train_sha256() != first
    modes = [DataConfig(source=str(moved), image_size=16, resize=mode) for mode in RESIZE_MODES]
    assert len({open_dataset(config).train_sha256() for config in modes}) == 3
    save(moved / "train" / "a" / "000.png", (0, 0, 0))
    changed = open_folder(moved).train_sha256()
    (moved / "train" / "a" / "000.png").rename(moved / "train" / "a" / "0.png")
    renamed = open_folder(moved).train_sha256()
    assert len({first, changed, renamed}) == 3
    assert open_folder(moved).test_sha256() == test_first


def test_missing_path(tmp_path: Path) -> None:
    failure(tmp_path / "nowhere", "data folder .*nowhere does not exist")
    (tmp_path / "file").write_bytes(b"")
    failure(tmp_path / "file", "file is not a folder")


def test_no_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "lonely.png")
    assert "PATH/CLASS/IMAGE" in failure(tmp_path, "has no class folders").hint


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    failure(make_tree(tmp_path, {"a": 5}), r"has 1 class \(a\), expected at least two")


def test_empty_class_folder(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "c").mkdir()
    failure(tmp_path, "class folder .*c is empty")
    (tmp_path / "c" / "notes.txt").write_text("still no image")
    failure(tmp_path, r"class folder .*c is empty: it has no image \([^)]*\)$")
    (tmp_path / "c" / "0.heic").write_text("not read")
    assert "windows:" not in failure(tmp_path, "class folder .*c is empty: .*, but 1 .heic").hint
    (tmp_path / "c" / "person").mkdir()
    (tmp_path / "c" / "person" / "walk.csv").write_text("1,2")
    hint = failure(tmp_path, "class folder .*c is empty").hint
    assert hint.startswith(f"for recordings of a sensor, --data windows:{tmp_path}; otherwise add images")


def test_one_level_too_deep(tmp_path: Path) -> None:
    for part in ("summer", "winter"):
        make_tree(tmp_path / part, {"a": 3, "b": 3})
    message = "class folder .*summer has no image of its own but folders with images: a, b"
    assert "PATH/test/CLASS/IMAGE" in failure(tmp_path, message).hint


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "VALID", "Testing"),
        ("train", "validation", "test"),
        ("training_set", "validation_set", "test_set"),
    ],
)
def test_parts_by_other_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for part, count in zip(names, (4, 2, 3), strict=True):
        make_tree(tmp_path / part, {"a": count, "b": count})
    dataset = open_folder(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.test().labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_counts() == [3, 3]
    whole = dataset.train()
    train, val = split_train_val(whole, 0.1)
    assert (len(whole), train.labels.tolist(), val.labels.tolist()) == (12, [0] * 4 + [1] * 4, [0, 0, 1, 1])
    assert val.dataset_indices.tolist() == [8, 9, 10, 11]
    assert np.array_equal(val.images, whole.images[8:])


def test_a_validation_folder_is_never_the_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path / "train", {"a": 10, "b": 10})
    before = open_folder(tmp_path).train_sha256()
    make_tree(tmp_path / "val", {"a": 3, "b": 3})
    dataset = open_folder(tmp_path)
    train, val = split_train_val(dataset.train(), 0.5)
    assert (len(train), len(val), len(dataset.test())) == (16, 6, 4)
    assert (val.labels == [0, 0, 0, 1, 1, 1]).all()
    assert dataset.train_sha256() != before
    message = "has no test folder: 4 of 20 images of train are held out as test images (--test-fraction), val is used"
    assert message in capsys.readouterr().err
    make_tree(tmp_path / "val", {"c": 1})
    failure(tmp_path, "val has the class c, which .*train has not")
    shutil.rmtree(tmp_path / "val" / "c")
    shutil.rmtree(tmp_path / "val" / "b")
    open_folder(tmp_path)
    assert "val has no images of b" in capsys.readouterr().err


def test_a_part_never_becomes_a_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        make_tree(tmp_path / part, {"a": 3, "b": 3})
    save(tmp_path / "stray.png")
    failure(tmp_path, r"has images in stray\.png next to train, test: it is not clear")
    (tmp_path / "stray.png").unlink()
    save(tmp_path / "bus" / "0.png")
    failure(tmp_path, "has images in bus next to train, test")
    shutil.rmtree(tmp_path / "bus")
    make_tree(tmp_path / "Training", {"a": 3, "b": 3})
    failure(tmp_path, "has two folders of train images: Training and train")
    for part in ("train", "Training"):
        shutil.rmtree(tmp_path / part)
    save(tmp_path / "train" / "0.png")
    failure(tmp_path, "train has no class folders, but 1 image")
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "test")
    make_tree(tmp_path / "val", {"a": 3, "b": 3})
    failure(tmp_path, "has val but no train folder")


def test_unlabelled_parts_are_no_classes(tmp_path: Path) -> None:
    make_tree(tmp_path, {"train": 3, "test": 3})
    failure(tmp_path, "train has no class folders, but 3 images")


def test_what_is_left_out_is_counted_by_class_and_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path, {"ant": 3, "bee": 3, "bee/inner": 2})
    for name in (
        "ant/0.HEIC",
        "ant/1.heic",
        "ant/notes.txt",
        "ant/.DS_Store",
        "ant/Thumbs.db",
        "bee/raw",
        "ant/x.json",
    ):
        (tmp_path / name).write_bytes(b"not read")
    save(tmp_path / "loose.png")
    (tmp_path / "__MACOSX").mkdir()
    for _ in range(2):
        dataset = open_folder(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {tmp_path}: 6 files are not used: 1 outside any class folder; ant: 2 .heic; "
        "bee: 1 without an extension, 2 in a folder inside the class folder (for HEIC: pip install pillow-heif)"
    )
    assert dataset.left_out["ant", ".heic"] == 2  # type: ignore[attr-defined]


def test_all_unreadable_images_are_named_at_once(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 20, "b": 20})
    for index in range(12):
        (tmp_path / "a" / f"{index:03}.png").write_bytes(b"no image")
    path = tmp_path / "b" / "000.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])  # its header is good
    message = str(failure(tmp_path, r"\(13 images in all\)"))
    assert message.count("not an image in a known format") == 10
    for index in range(12):
        save(tmp_path / "a" / f"{index:03}.png")
    dataset = open_folder(tmp_path)
    with pytest.raises(InputError, match=r"000\.jpg: .*truncated"):
        dataset.train(), dataset.test()


def test_copies_are_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path / "train", {"a": 3, "b": 3})
    make_tree(tmp_path / "val", {"a": 3, "b": 3})
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    for part, shift in (("val", 50), ("test", 100)):
        for number, path in enumerate(sorted((tmp_path / part).rglob("*.png"))):
            save(path, (1, 2, shift + number))
    nothing = {"test_copies": 0, "test_copies_example": None, "in_two_classes": 0, "in_two_classes_example": None}
    assert open_folder(tmp_path).duplicates() == nothing  # type: ignore[attr-defined]
    shutil.copy(tmp_path / "train" / "a" / "001.png", tmp_path / "test" / "a" / "copy.png")
    shutil.copy(tmp_path / "val" / "b" / "002.png", tmp_path / "test" / "b" / "copy.png")
    shutil.copy(tmp_path / "train" / "a" / "000.png", tmp_path / "train" / "b" / "copy.png")
    dataset = open_folder(tmp_path)
    assert dataset.duplicates() == {  # type: ignore[attr-defined]
        "test_copies": 2, "test_copies_example": ["test/a/copy.png", "train/a/001.png"],
        "in_two_classes": 2, "in_two_classes_example": ["train/a/000.png", "train/b/copy.png"],
    }  # fmt: skip
    dataset.warn_duplicates()  # type: ignore[attr-defined]
    first, second = capsys.readouterr().err.splitlines()
    assert "2 of 4 test images are copies of training or validation images, such as test/a/copy.png" in first
    assert "2 images have copies in another class, such as train/a/000.png and train/b/copy.png" in second


def test_only_what_is_used_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"a": 20, "b": 20})
    config = DataConfig(source=f"folder:{tmp_path}", image_size=16, train_size=6)
    whole = split_train_val(open_folder(tmp_path).train(), config.val_fraction, config.train_size)
    read = []
    monkeypatch.setattr(items, "convert_image", lambda path, convert: read.append(path) or convert_image(path, convert))
    parts = training_images(open_dataset(config), config)
    assert len(read) == 6 + 4  # 32 images are left without the test images
    for part, expected in zip(parts, whole, strict=True):
        assert np.array_equal(part.images, expected.images)
        assert np.array_equal(part.labels, expected.labels)
        assert np.array_equal(part.dataset_indices, expected.dataset_indices)


def test_empty_class_folder_in_the_test_part(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"a": 3, "b": 3})
    (tmp_path / "test" / "a").mkdir(parents=True)
    failure(tmp_path, "class folder .*test.a is empty")
    (tmp_path / "test" / "a").rmdir()
    failure(tmp_path, "test has no class folders")


def test_test_class_without_training_images(tmp_path: Path) -> None:
    make_tree(tmp_path / "train", {"a": 3, "b": 3})
    make_tree(tmp_path / "test", {"a": 1, "zebra": 1})
    failure(tmp_path, r"has the class zebra, which .*train has not \(it has a, b\)")


def test_a_class_without_test_images_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path / "train", {"ant": 3, "bee": 3, "cat": 3})
    make_tree(tmp_path / "test", {"bee": 1})
    for _ in range(2):
        assert len(open_folder(tmp_path).test()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "test has no images of ant, cat" in line


def test_a_class_that_a_small_training_set_leaves_out_is_named(tmp_path: Path) -> None:
    dataset = open_folder(make_tree(tmp_path, {"ant": 30, "bee": 3}))
    with pytest.raises(InputError, match="--train-size 4 leaves the class bee without a training image"):
        split_train_val(dataset.train(), 0.1, train_size=4)


def test_a_half_of_three_images_leaves_one_for_each_part(tmp_path: Path) -> None:
    train = open_folder(make_tree(tmp_path, {"a": 10, "b": 3}), test_fraction=0.5).train()
    assert np.bincount(train.labels).tolist() == [5, 2]
    assert [np.bincount(part.labels).tolist() for part in split_train_val(train, 0.5)] == [[3, 1], [2, 1]]


def test_too_few_images_to_divide(tmp_path: Path) -> None:
    failure(make_tree(tmp_path / "one", {"a": 5, "b": 2}), "one.b has 2 images, .*expected at least 3")
    make_tree(tmp_path / "two" / "train", {"a": 5, "b": 1})
    make_tree(tmp_path / "two" / "test", {"a": 5})
    failure(tmp_path / "two", "train.b has 1 image, .*expected at least 2")


@pytest.mark.parametrize("place", ["train/a/gone.png", "test/b/gone.png", "train/c"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, place: str) -> None:
    for part in ("train", "test"):
        make_tree(tmp_path / part, {"a": 3, "b": 3})
    (tmp_path / place).symlink_to(tmp_path / "nowhere")
    failure(tmp_path, f"{place} links to .*nowhere, which does not exist")


def test_links_to_images_and_folders_are_followed(tmp_path: Path) -> None:
    make_tree(tmp_path / "data", {"a": 3, "b": 3})
    save(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "data" / "a" / "c.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    dataset = open_folder(tmp_path / "data")
    assert len(dataset.train()) + len(dataset.test()) == 7


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root reads everything")
def test_folder_without_permission(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a").chmod(0)
    try:
        failure(tmp_path, "cannot read the folder .*a: Permission denied")
    finally:
        (tmp_path / "a").chmod(0o755)
