"""Names of class folders: order, scripts, and what cannot be a label."""

import os
from pathlib import Path

import numpy as np
import pytest
from image_folders import failure, make_tree, open_folder

from kdedge.errors import InputError
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset


def test_names_are_sorted_alike_on_every_system(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path, {"apple": 3, "Zebra": 3})).class_names == ("Zebra", "apple")


def test_the_name_of_a_folder_is_text_for_reports(tmp_path: Path) -> None:
    folder = os.fsdecode(b"K\xfcche")
    try:
        dataset = open_folder(make_tree(tmp_path / folder, {"a": 3, "b": 3}))
    except OSError:
        pytest.skip("this file system has no such names")
    assert dataset.name.encode().decode() == "folder:K\ufffdche"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path, {"train": 3, "bus": 3})).class_names == ("bus", "train")


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path, {"test": 3, "other": 3})).class_names == ("other", "test")


def test_names_that_look_the_same_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make_tree(tmp_path / "train", {composed: 3, "tea": 3})
    make_tree(tmp_path / "test", {decomposed: 2, "tea": 1})
    dataset = open_folder(tmp_path)
    assert dataset.class_names == (composed, "tea")
    assert dataset.test_counts() == [2, 1]


def test_blanks_around_a_name_are_no_other_class(tmp_path: Path) -> None:
    assert open_folder(make_tree(tmp_path / "a", {"tea": 3, "tea ": 3, "milk": 3})).class_names == ("milk", "tea")
    failure(make_tree(tmp_path / "b", {"tea": 3, " ": 3}), "the class folder ' ' in .* cannot have")
    images = np.zeros((9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=["tea", "tea ", "milk"] * 3)
    assert open_dataset(DataConfig(source=str(tmp_path / "a.npz"))).class_names == ("milk", "tea")
    np.savez(tmp_path / "b.npz", x=images, y=["tea", " ", "milk"] * 3)
    with pytest.raises(InputError, match=r"y\[1\] of .*b\.npz is '', which cannot be a label"):
        open_dataset(DataConfig(source=str(tmp_path / "b.npz")))


@pytest.mark.parametrize("name", ["\u0646\u200c\u0645", "\u0915\u094d\u200d\u0937", "\u5168\u3000\u89d2", "a\u00a0b"])
def test_joiners_and_spaces_of_other_scripts_are_legitimate(tmp_path: Path, name: str) -> None:
    assert name in open_folder(make_tree(tmp_path, {"good": 3, name: 3})).class_names


@pytest.mark.parametrize("name", ["new\nline", "line\u2028separator", os.fsdecode(b"caf\xe9")])
def test_a_class_name_that_cannot_be_a_label_is_refused(tmp_path: Path, name: str) -> None:
    make_tree(tmp_path, {"good": 3, name: 3})
    failure(tmp_path, "characters that a label cannot have")


def test_class_names_may_have_spaces_and_other_scripts(tmp_path: Path) -> None:
    make_tree(tmp_path, {"rote Äpfel": 3, "りんご": 3})
    assert open_folder(tmp_path).class_names == ("rote Äpfel", "りんご")
