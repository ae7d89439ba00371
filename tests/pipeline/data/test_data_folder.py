"""A user's own images in class folders: every layout, every mistake."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_folders import blues, failure, make_tree, open_folder, save

from pipeline.data import split_train_val
from pipeline.errors import InputError


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
    for part in ("train", "test", "val"):
        make_tree(tmp_path / part, {"a": 2, "b": 2})
    assert len(open_folder(tmp_path).train()) == 4
    assert "using train and test, ignoring val" in capsys.readouterr().err


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


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path, {"train": 3, "bus": 3})).class_names == ("bus", "train")


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


def test_names_are_sorted_alike_on_every_system(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path, {"apple": 3, "Zebra": 3})).class_names == ("Zebra", "apple")


def test_the_name_of_a_folder_is_text_for_reports(tmp_path: Path) -> None:
    folder = os.fsdecode(b"K\xfcche")
    try:
        dataset = open_folder(make_tree(tmp_path / folder, {"a": 3, "b": 3}))
    except OSError:
        pytest.skip("this file system has no such names")
    assert dataset.name.encode().decode() == "folder:K\ufffdche"


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path, {"test": 3, "other": 3})).class_names == ("other", "test")


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
    failure(make_tree(tmp_path, {"a": 5}), r"has one class folder \(a\), expected at least two")


def test_empty_class_folder(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "c").mkdir()
    failure(tmp_path, "class folder .*c is empty")
    (tmp_path / "c" / "notes.txt").write_text("still no image")
    failure(tmp_path, "class folder .*c is empty")


def test_one_level_too_deep(tmp_path: Path) -> None:
    for part in ("train", "val"):
        make_tree(tmp_path / part, {"a": 3, "b": 3})
    assert "PATH/test/CLASS/IMAGE" in failure(tmp_path, "class folder .*train is empty").hint


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
    with pytest.raises(InputError, match="--train-size 4 leaves the class bee without an image"):
        split_train_val(dataset.train(), 0.1, train_size=4)


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


@pytest.mark.parametrize("name", ["new\nline", "line\u2028separator", os.fsdecode(b"caf\xe9")])
def test_a_class_name_that_cannot_be_a_label_is_refused(tmp_path: Path, name: str) -> None:
    make_tree(tmp_path, {"good": 3, name: 3})
    failure(tmp_path, "characters that a label cannot have")


def test_class_names_may_have_spaces_and_other_scripts(tmp_path: Path) -> None:
    make_tree(tmp_path, {"rote Äpfel": 3, "りんご": 3})
    assert open_folder(tmp_path).class_names == ("rote Äpfel", "りんご")
