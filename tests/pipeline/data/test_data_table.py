"""Images that a table lists: CSV and Parquet, splits, groups, and every mistake with its line."""

import os
import shutil
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_folders import save

from kdedge.dataset import split_train_val
from kdedge.errors import InputError
from kdedge.images import read_image
from kdedge.pipeline.config import Config
from kdedge.pipeline.data import table
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import check_outside, open_dataset
from kdedge.pipeline.data.summary import summarise
from kdedge.pipeline.data.user_images import UserImages, divided
from kdedge.pipeline.stages.fingerprint import of_sections


def write(root: Path, lines: "list[str]", header: str = "path,label", name: str = "labels.csv") -> Path:
    """A table, and an image of its own for each path in it."""
    root.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(lines):
        if (path := root / line.split(",")[0]) != root and not path.exists():
            save(path, (100, 50, number))
    (root / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return root / name


def numbered(counts: dict[str, int], more: str = "") -> list[str]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [f"images/{index}.png,{label}" + more.format(index=index) for index, label in enumerate(labels)]


def opened(file: Path, **options: object) -> UserImages:
    dataset = open_dataset(DataConfig(**{"source": str(file), "image_size": 16, **options}))  # type: ignore[arg-type]
    assert isinstance(dataset, UserImages)
    return dataset


def failure(file: Path, match: str) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        opened(file)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def test_without_a_split_parts_are_held_out_by_class_and_always_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, numbered({"dog": 20, "cat": 10}))
    dataset = opened(file)
    assert (dataset.name, dataset.class_names) == ("table:labels.csv", ("cat", "dog"))
    train, test = dataset.train(), dataset.test()
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([8, 16], [2, 4])
    assert [item.name for item in dataset.items] == [item.name for item in opened(file).items]
    first = dataset.train_items[0]
    assert np.array_equal(train.images[0], read_image(tmp_path / first.name, 16))
    split_train_val(train, 0.1)


def test_the_split_of_the_table_is_used(tmp_path: Path) -> None:
    parts = ["train"] * 6 + ["Validation"] * 2 + ["TEST"] * 2
    lines = [f"{index}.png,{'ab'[index % 2]},{part}" for index, part in enumerate(parts)]
    dataset = opened(write(tmp_path, lines, "path,label,split"))
    train, val = split_train_val(dataset.train(), 0.1)
    assert (train.images[:, 0, 0, 2].tolist(), val.images[:, 0, 0, 2].tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7])
    assert dataset.test().images[:, 0, 0, 2].tolist() == [8, 9]


def test_order_and_case_of_columns_other_columns_semicolons_and_a_byte_order_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, numbered({"a": 3, "b": 3}))
    plain = opened(tmp_path / "labels.csv")
    lines = [f'x;"{(index // 3 and "b") or "a"}";images/{index}.png' for index in range(6)]
    (tmp_path / "other.csv").write_text("\ufeff" + "\r\n".join(["Note; LABEL ;Path", *lines, "", ""]), "utf-8")
    assert opened(tmp_path / "other.csv").train_sha256() == plain.train_sha256() != plain.test_sha256()
    assert "ignoring the columns note" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_groups_never_cross_parts_and_every_class_is_in_each(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["ant", "bee", "cow"], 400, p=[0.6, 0.3, 0.1])
    lines = [f"{index}.png,{label},g{rng.integers(40)}" for index, label in enumerate(labels)]
    dataset = opened_unchecked(write_table(tmp_path, lines, "path,label,group"))
    parts = (dataset.train_items, dataset.val_items, dataset.test_items)
    groups = [{item.group for item in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert sum(map(len, parts)) == 400
    counts = [Counter(item.label for item in part) for part in parts]
    whole = sum(counts, Counter())
    for label in range(3):
        assert abs(counts[2][label] / whole[label] - 0.2) < 0.05
        assert abs(counts[1][label] / (whole[label] - counts[2][label]) - 0.1) < 0.05
    again = opened_unchecked(tmp_path / "labels.csv")
    assert again.test_items == dataset.test_items


def write_table(root: Path, lines: "list[str]", header: str) -> Path:
    (root / "labels.csv").write_text("\n".join([header, *lines]))
    return root / "labels.csv"


def opened_unchecked(file: Path) -> UserImages:
    """The listed images, which need not exist."""
    return divided(table.list_table(file), DataConfig(image_size=16))


def test_groups_of_classes_keep_one_for_each_part(tmp_path: Path) -> None:
    images = [label + group + index for label in "ab" for group in "xyz" for index in "012"]
    lines = [f"{image}.png,{image[0]},{image[:2]}" for image in images]
    dataset = opened_unchecked(write_table(tmp_path, lines, "path,label,group"))
    for part in (dataset.train_items, dataset.val_items, dataset.test_items):
        assert sorted(item.group[0] for item in part) == ["a"] * 3 + ["b"] * 3
    with pytest.raises(InputError, match=r"the class b of .*csv has 2 groups, .* expected at least 3") as caught:
        opened_unchecked(write_table(tmp_path, lines[:15], "path,label,group"))
    assert "training, validation and test" in str(caught.value)


def test_images_without_a_group_have_their_own(tmp_path: Path) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},{'g' if index < 4 else ''}" for index in range(24)]
    dataset = opened_unchecked(write_table(tmp_path, lines, "path,label,group"))
    assert 2 <= len(dataset.test_items) <= 6
    parts = (dataset.train_items, dataset.val_items, dataset.test_items)
    assert sum(any(item.group for item in part) for part in parts) == 1


def test_held_out_validation_groups_are_those_that_training_uses(tmp_path: Path) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},g{index // 4}" for index in range(40)]
    dataset = opened(write(tmp_path, lines, "path,label,group"))
    _, val = split_train_val(dataset.train(), 0.5)
    assert {item.group for item in dataset.val_items} == {f"g{blue // 4}" for blue in val.images[:, 0, 0, 2].tolist()}


def test_test_rows_suffice_to_measure_a_bundle(tmp_path: Path) -> None:
    lines = [f"{index}.png,{'abc'[index % 3]},{'train' if index < 6 else 'test'}" for index in range(9)]
    whole = opened(write(tmp_path / "here", lines, "path,label,split"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    alone = opened(write(tmp_path / "there", lines[6:8], "path,label,split"))
    assert alone.labelled_as(("a", "b", "c")).test_counts() == [1, 1, 0]
    alone = opened(write(tmp_path / "there", lines[6:], "path,label,split"))
    assert alone.labelled_as(("a", "b", "c")).test_sha256() == whole.test_sha256()
    with pytest.raises(InputError, match="has no train rows"):
        alone.train()


def test_hashes_cover_names_labels_groups_and_splits(tmp_path: Path) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},{'train' if index < 6 else 'test'},g{index}" for index in range(8)]
    first = opened(write(tmp_path, lines, "path,label,split,group"))
    hashes = {first.train_sha256()}
    for old, new in (("0.png,a", "0.png,b"), ("g2", "g20"), ("3.png,b,train", "3.png,b,val")):
        changed = [line.replace(old, new) for line in lines]
        hashes.add(opened(write(tmp_path, changed, "path,label,split,group")).train_sha256())
    shutil.move(tmp_path / "1.png", tmp_path / "x.png")
    renamed = [line.replace("1.png", "x.png") for line in lines]
    other = opened(write(tmp_path, renamed, "path,label,split,group"))
    hashes.add(other.train_sha256())
    assert len(hashes) == 5
    assert other.test_sha256() == first.test_sha256()


def test_copies_summary_and_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},{'train' if index < 6 else 'test'}" for index in range(8)]
    file = write(tmp_path, lines, "path,label,split")
    shutil.copy(tmp_path / "0.png", tmp_path / "6.png")
    summary, _ = summarise(DataConfig(source=str(file), image_size=16))
    assert (summary["data"], summary["test"]) == ("table:labels.csv", 2)
    assert "1 of 2 test images are copies" in capsys.readouterr().err
    check_outside(opened(file), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\)"),
        ("file,label\n0.png,a\n", "has the columns file, label"),
        ("path,label,label\n", "has the columns path, label, label"),
        ("path,label\n", "has no rows"),
        ("path,label\n0.png,a\n1.png,b,c\n", "line 3 of .*csv: 3 cells, expected 2"),
        ("path,label\n\n0.png\n", "line 3 of .*csv: 1 cells"),
        ("path,label\n0.png,\n", "line 2 of .*csv: the label is empty"),
        ("path,label\n,a\n", "line 2 of .*csv: the path is empty"),
        ('path,label\n"0\n.png",a\n1.png,\n', "line 4 of .*csv: the label is empty"),
        ('path,label\n0.png,"a\nb"\n', "line 2 of .*csv: the label 'a.nb' has characters"),
        ('path,label\n0.png,a\n1.png,"b\n', "line 3 of .*csv: unexpected end of data"),
        ("path,label\n0.png,a\n./0.png,b\n", r"line 3 of .*csv: the image ./0.png is already in line 2"),
        ("path,label,split\n0.png,a,dev\n", "line 2 of .*csv: the split is 'dev', expected train, val or test"),
        ("path,label,split\n0.png,a,train\n1.png,b,\n", "line 3 of .*csv: the split is empty, but line 2 has one"),
        ("path,label,split\n0.png,a,val\n", "has no row with the split train"),
        ("path,label,split\n0.png,a,train\n1.png,b,train\n2.png,z,test\n", "line 4 of .*: the class z of"),
        ("path,label,split,group\n0.png,a,train,g\n1.png,b,test,g\n", "line 3 .*: the group g is in .* test, but"),
        ("path,label\n0.png,a\n1.png,a\n", r"has 1 class \(a\), expected at least two"),
        ("path,label\n0.png,a\n1.png,a\n2.png,a\n3.png,b\n", "the class b of .*csv has 1 image, too few to divide"),
        ("path,label,split\n0.png,a,test\n1.png,b,test\n2.png,c,train\n3.png,d,train\n", "line 2 .*: the class a"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    failure(tmp_path / "labels.csv", message)


def test_images_that_cannot_be_read_are_named_with_their_line(tmp_path: Path) -> None:
    file = write(tmp_path, numbered({"a": 5, "b": 5}))
    (tmp_path / "images" / "3.png").unlink()
    (tmp_path / "images" / "7.png").write_bytes(b"no image")
    message = str(failure(file, r"\(2 images in all\)"))
    assert "No such file or directory (line 5 of labels.csv)" in message
    assert "(line 9 of labels.csv)" in message


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_name_of_another_column_may_have_a_comma(tmp_path: Path, mark: str) -> None:
    lines = [mark.join((*line.split(","), "x")) for line in numbered({"a": 4, "b": 4})]
    write(tmp_path, numbered({"a": 4, "b": 4}))
    (tmp_path / "labels.csv").write_text("\n".join([mark.join(("path", '"label"', '"size, mm"')), *lines]))
    assert len(opened(tmp_path / "labels.csv").items) == 8


def test_a_path_that_the_system_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, numbered({"a": 4, "b": 4}))
    file.write_text(f"{file.read_text()}{'long' * 100}.png,a\n")
    failure(file, "line 10 of .*csv: cannot read (long)+.png: File name too long")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_folders_and_fifos_are_no_images(tmp_path: Path) -> None:
    file = write(tmp_path, numbered({"a": 4, "b": 4}))
    (tmp_path / "images" / "2.png").unlink()
    (tmp_path / "images" / "2.png").mkdir()
    failure(file, "line 4 of .*csv: images/2.png is not a regular file")
    (tmp_path / "images" / "2.png").rmdir()
    os.mkfifo(tmp_path / "images" / "2.png")
    failure(file, "line 4 of .*csv: images/2.png is not a regular file")


def test_a_moved_table_is_the_same_run(tmp_path: Path) -> None:
    write(tmp_path / "here", numbered({"a": 5, "b": 5}))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (tmp_path / place / "labels.csv" for place in ("here", "there"))
    known = [of_sections("data")(Config(data=DataConfig(source=str(file)))) for file in (here, there)]
    assert known[0] == known[1]
    assert known[0]["data"]["source"] == "table:labels.csv"
    assert opened(here).train_sha256() == opened(there).train_sha256()


def test_files_that_are_no_table(tmp_path: Path) -> None:
    failure(tmp_path / "labels.csv", "the table .*labels.csv does not exist")
    (tmp_path / "labels.csv").write_bytes(b"path,label\n0.png,caf\xe9\n")
    failure(tmp_path / "labels.csv", "line 2 of .*csv is not UTF-8")
    (tmp_path / "folder.csv").mkdir()
    failure(tmp_path / "folder.csv", "has no class folders")


def test_absolute_paths_are_private(tmp_path: Path) -> None:
    lines = [f"{tmp_path}/pictures/{index}.png,{'ab'[index % 2]}" for index in range(6)]
    dataset = opened(write(tmp_path / "here", lines))
    assert all("/" not in item.name for item in dataset.items)
    assert len(dataset.train()) == 4


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda wanted: wanted == name or None)


def test_parquet_with_either_reader_is_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = opened(write(tmp_path, numbered({"1": 3, "2": 3}))).test_sha256()
    columns = {"path": [f"images/{index}.png" for index in range(6)], "label": [1, 1, 1, 2, 2, 2], "group": [None] * 6}
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    read = types.SimpleNamespace(to_pydict=lambda: columns, to_dict=lambda as_series: columns)
    with monkeypatch.context() as patch:
        fake(patch, "pyarrow", parquet=types.SimpleNamespace(read_table=lambda _: read))
        dataset = opened(tmp_path / "labels.parquet")
    assert dataset.train_items[0].place.startswith("row ")
    with monkeypatch.context() as patch:
        fake(patch, "polars", read_parquet=lambda _: read)
        assert opened(tmp_path / "labels.parquet").test_sha256() == dataset.test_sha256() == expected
    with monkeypatch.context() as patch:
        fake(patch, "polars", read_parquet=lambda _: 1 / 0)
        failure(tmp_path / "labels.parquet", "cannot read the table .*: division by zero")


def test_parquet_without_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda _: None)
    assert "CSV" in failure(tmp_path / "labels.parquet", "needs pyarrow or polars, and neither is installed").hint
