"""A table that lists the user's images: ``--data FILE.csv`` or ``--data FILE.parquet``.

The columns are ``path`` (relative to the table) and ``label``, and optionally ``split`` (``train``, ``val`` or
``test``) and ``group``. Other columns are ignored. Without ``split``, test and validation images are held out. Images
of one group stay in one part.
"""

import csv
import importlib.util
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import InputError
from kdedge.pipeline.data.class_folders import PARTS, class_name, is_label, log_once
from kdedge.pipeline.data.items import Item
from kdedge.pipeline.data.parts import Listed, Parts

__all__ = ["list_table", "read_parquet"]

_COLUMNS = ("path", "label", "split", "group")
_EXPECTED = "expected a table with the columns path and label, and optionally split (train, val, test) and group"
_Cells = Iterable[tuple[str, Sequence[str]]]
"""The place of each row, such as ``line 7``, and its cells."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a table; ``part`` and ``group`` may be empty."""

    place: str
    path: str
    label: str
    part: str
    group: str


def list_table(file: Path) -> Listed:
    """List the images of a table without opening one.

    Raises:
        InputError: The table cannot be read, a row is not as expected, or a group is in two parts.
    """
    if not file.is_file():
        raise InputError(f"the table {file} {'is not a file' if file.exists() else 'does not exist'}", _EXPECTED)
    header, cells = read_parquet(file) if file.suffix.lower() == ".parquet" else _read_csv(file)
    rows = list(_rows(file, [name.strip().lower() for name in header], cells))
    _check_rows(file, rows)
    by_part: dict[str, list[_Row]] = {}
    for row in rows:
        by_part.setdefault(row.part or "train", []).append(row)
    if "train" not in by_part:
        if "test" not in by_part:
            raise InputError(f"{file} has no row with the split train", _EXPECTED)
        by_part.pop("val", None)
    names = sorted({row.label for row in by_part.get("train", by_part.get("test", []))})
    parts: Parts = {part: [_item(file, row, names) for row in rows] for part, rows in by_part.items()}
    return Listed("table", file, tuple(names), parts, bool(rows[0].part), _EXPECTED)


def _item(file: Path, row: _Row, names: list[str]) -> Item:
    if row.label not in names:
        raise _bad(file, row.place, f"the class {row.label} of the split {row.part} has no row with the split train")
    path, base = Path(row.path), file.parent
    name = row.path
    if path.is_absolute():  # what only this machine has is not part of a name
        name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
    try:
        other = not (base / path).is_file() and (base / path).exists()
    except OSError as error:
        raise _bad(file, row.place, f"cannot read {row.path}: {error.strerror}") from error
    if other:  # reading a FIFO would wait
        raise _bad(file, row.place, f"{row.path} is not a regular file")
    place = f"{row.place} of {file.name}"
    return Item(base, names.index(row.label), name, place, row.group, row.part, "" if name == row.path else row.path)


def _rows(file: Path, header: list[str], cells: _Cells) -> Iterator[_Row]:
    """Yield the rows of a table and check each by itself."""
    if any(header.count(name) != 1 for name in _COLUMNS[:2]) or any(header.count(name) > 1 for name in _COLUMNS):
        sensor = "" if "path" in header else f"for recordings of a sensor, --data windows:{file}; otherwise "
        raise InputError(f"{file} has the columns {', '.join(header) or '(none)'}", sensor + _EXPECTED)
    if unused := [name for name in header if name not in _COLUMNS]:
        log_once(f"{file}: ignoring the columns {', '.join(unused)}")
    places = [header.index(name) if name in header else None for name in _COLUMNS]
    for place, row in cells:
        if len(row) != len(header):
            raise _bad(file, place, f"{len(row)} cells, expected {len(header)}: {', '.join(header)}")
        path, label, split, group = ("" if column is None else row[column].strip() for column in places)
        if not path or not label:
            raise _bad(file, place, f"the {'label' if path else 'path'} is empty")
        if not is_label(label):
            raise _bad(file, place, f"the label {label!r} has characters that a label cannot have")
        if split and split.casefold() not in PARTS:
            raise _bad(file, place, f"the split is {split!r}, expected train, val or test")
        yield _Row(place, path, class_name(label), PARTS[split.casefold()] if split else "", group)


def _check_rows(file: Path, rows: list[_Row]) -> None:
    """Refuse images that are listed twice, groups in two parts, and a split for some rows only."""
    if not rows:
        raise InputError(f"{file} has no rows", _EXPECTED)
    without = next((row for row in rows if not row.part), None)
    with_split = next((row for row in rows if row.part), None)
    if without and with_split:
        raise _bad(file, without.place, f"the split is empty, but {with_split.place} has one: expected all or none")
    paths: dict[str, _Row] = {}
    groups: dict[str, _Row] = {}
    for row in rows:
        first = paths.setdefault(os.path.normpath(file.parent / row.path), row)
        if first is not row:
            raise _bad(file, row.place, f"the image {row.path} is already in {first.place}")
        first = groups.setdefault(row.group, row)
        if row.group and first.part != row.part:
            other = f"in {first.part} in {first.place}"
            raise _bad(file, row.place, f"the group {row.group} is in the split {row.part}, but {other}")


def _bad(file: Path, place: str, what: str) -> InputError:
    return InputError(f"{place} of {file}: {what}", _EXPECTED)


def _read_csv(file: Path) -> tuple[list[str], _Cells]:
    """Return the header and the rows of a CSV file in UTF-8, separated by commas, semicolons or tabs."""
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the table {file}: {error.strerror or error}", "check its permissions") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"line {line} of {file} is not UTF-8", "save the table as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.partition("\n")[0]), strict=True)

    def rows() -> Iterator[tuple[str, list[str]]]:
        line = 1
        try:
            for row in reader:
                if row:
                    yield f"line {line}", row
                line = reader.line_num + 1
        except csv.Error as error:
            raise _bad(file, f"line {line}", str(error)) from error

    listed = rows()
    _, header = next(listed, ("", []))
    return header, listed


def _delimiter(first_line: str) -> str:
    """Return the first mark that splits a header into the required columns, or else the first mark in it."""
    marks = [mark for mark in ",;\t" if mark in first_line]
    cells = {mark: [cell.strip(' "\r').lower() for cell in first_line.split(mark)] for mark in marks}
    return next((mark for mark in marks if {*_COLUMNS[:2]} <= {*cells[mark]}), next(iter(marks), ","))


def read_parquet(file: Path) -> tuple[list[str], _Cells]:
    """Return the header and the rows of a Parquet file."""
    try:
        columns = _parquet_columns(file)
    except InputError:
        raise
    except Exception as error:  # the readers have errors of their own
        raise InputError(f"cannot read the table {file}: {' '.join(str(error).split())}", _EXPECTED) from error
    texts = [["" if value is None else str(value) for value in values] for values in columns.values()]
    return list(columns), ((f"row {number}", row) for number, row in enumerate(zip(*texts, strict=True), 1))


def _parquet_columns(file: Path) -> dict[str, list[Any]]:
    if importlib.util.find_spec("pyarrow"):
        from pyarrow import parquet

        return dict(parquet.read_table(file).to_pydict())
    if importlib.util.find_spec("polars"):
        import polars

        return dict(polars.read_parquet(file).to_dict(as_series=False))
    raise InputError(
        f"reading {file} needs pyarrow or polars, and neither is installed",
        "run `pip install pyarrow`, or save the table as CSV",
    )
