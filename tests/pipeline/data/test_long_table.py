"""Recordings in one long table: the same data as in folders, its splits, labels and columns without a name."""

import csv

import pytest
import signals

from kdedge.dataset import split_train_val
from kdedge.errors import InputError
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import find_dataset


def opened(path, **options):
    return find_dataset(DataConfig(source=f"windows:{path}", **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return signals.make_folder(tmp_path_factory.mktemp("recordings") / "data")


def write_long(file, folder, *, subject):
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "time", "label", *(["subject"] if subject else []), "ax", "ay"])
        for path in sorted(folder.rglob("*.csv")):
            name, whose = path.parent.name, [f"{path.parent.name}{int(path.stem) // 2}"] if subject else []
            for time, *values in [line.split(",") for line in path.read_text().splitlines()[1:]]:
                writer.writerow([f"{name}/{path.name}", time, name, *whose, *values])
    return file


def test_a_long_table_is_the_same_data(folder, tmp_path):
    long, files = opened(write_long(tmp_path / "a.csv", folder, subject=False), window=64), opened(folder, window=64)
    assert long.train_sha256() == files.train_sha256()
    assert long.test_sha256() == files.test_sha256()
    with_subject = write_long(tmp_path / "b.csv", folder, subject=True)
    by_subject = opened(with_subject, window=64, groups="subject")
    parts = (*split_train_val(by_subject.train(), 0.1), by_subject.test())
    assert sum(len({*part.groups.tolist()}) for part in parts) == 6
    with pytest.raises(InputError, match=r"row 2 of .*b.csv: subject is 'fast0', expected a finite number") as caught:
        opened(with_subject, window=64)
    assert caught.value.hint.endswith("remove other columns, or name one with --groups")
    assert caught.value.hint.count("expected a CSV file") == 1


def test_a_split_is_for_all_recordings_or_none(folder, tmp_path):
    lines = write_long(tmp_path / "a.csv", folder, subject=False).read_text().splitlines()
    split = [f"{line},{'test' if line.startswith('fast/0') else ''}" for line in lines[1:]]
    (tmp_path / "b.csv").write_text("\n".join([f"{lines[0]},split", *split]))
    with pytest.raises(InputError, match=r"row \d+ of .*b\.csv: the split is empty, but other rows have one"):
        opened(tmp_path / "b.csv", window=64)


def test_blanks_around_the_cells_of_a_parquet_table_are_ignored_as_in_csv(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = write_long(tmp_path / "a.csv", folder, subject=False)
    names, *rows = [line.split(",") for line in table.read_text().splitlines()]
    columns = [[f"{cell} " for cell in cells] for cells in zip(*rows, strict=True)]
    parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), tmp_path / "b.parquet")
    assert opened(tmp_path / "b.parquet", window=64).train_sha256() == opened(table, window=64).train_sha256()


def test_the_index_that_pandas_keeps_in_parquet_is_no_channel(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": [1], "label": ["a"], "__index_level_0__": [7]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 3 of .*a\.parquet has no name of its own \(__index_level_0__\)"):
        opened(tmp_path / "a.parquet")


def test_recordings_outside_class_folders_and_without_the_prefix_are_named(folder, tmp_path):
    write_long(tmp_path / "loose.csv", folder, subject=False)
    with pytest.raises(InputError, match=r"no class folders, but recordings such as loose\.csv") as caught:
        opened(tmp_path)
    assert "or one file with the columns id and label" in caught.value.hint
    with pytest.raises(InputError, match="has the columns id, time") as caught:
        find_dataset(DataConfig(source=str(tmp_path / "loose.csv")))
    assert caught.value.hint.startswith(f"for recordings of a sensor, --data windows:{tmp_path / 'loose.csv'}")


@pytest.mark.parametrize("label", ["", '"very\nslow"'])
def test_labels_are_lines_of_text(folder, tmp_path, label):
    write_long(tmp_path / "long.csv", folder, subject=False)
    text = (tmp_path / "long.csv").read_text()
    (tmp_path / "long.csv").write_text(text.replace(",slow", f",{label}"))
    with pytest.raises(InputError, match=r"has the label '"):
        opened(tmp_path / "long.csv", window=64)
