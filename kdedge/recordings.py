"""Recordings of a signal: CSV files with a row per instant, and the windows that are cut from them."""

import csv
import io
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError
from kdedge.inputs import RATE_TOLERANCE, InputSpec
from kdedge.progress import warn_once

__all__ = ["Recording", "Table", "check_names", "csv_files", "cut", "read_csv", "recording_of", "window_starts"]

EXPECTED = "expected a CSV file with a row per instant and a column per channel, and optionally a header and a time"
_NUMBERS = (
    f"{EXPECTED}; every cell is a number with a decimal point, also the time (in seconds): remove other columns, or "
    "name one with --groups"
)
# The name of a time column, and its unit: seconds without one. `casefold` makes the micro sign a Greek mu, \u03bc.
_TIME = re.compile(r"(?:time|t|timestamp|seconds?|secs?)(?:[ _]?[(\[]?(s|sec|seconds|ms|us|\u03bcs|ns)[)\]]?)?")
_SECONDS = {"ms": 1e-3, "us": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9}
_NO_NAME = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__)?")
_GAP = 0.5  # of a step: a larger deviation is a gap


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        path: The file.
        names: Names of the columns; empty without a header.
        columns: The cells of each column.
        lines: The place of each row in the file, from 1.
    """

    path: Path
    names: tuple[str, ...]
    columns: tuple[list[str], ...]
    lines: list[int]

    def numbers(self, column: int) -> NDArray[np.float64]:
        """Return a column as numbers that are finite, also in float32.

        Raises:
            InputError: A cell is not one.
        """
        cells = self.columns[column]
        try:
            values = np.array(cells, dtype=np.str_).astype(np.float64)
        except ValueError:
            values = np.array([_number(cell) for cell in cells])
        finite = np.abs(values) <= np.finfo(np.float32).max
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            name = self.names[column] if self.names else f"column {column + 1}"
            raise self.problem(row, f"{name} is {cells[row] or 'empty'!r}, expected a finite number", _NUMBERS)
        return values

    def problem(self, row: int, what: str, hint: str = EXPECTED) -> InputError:
        """Return the error for a row, from 0."""
        return InputError(f"row {self.lines[row]} of {self.path}: {what}", hint)


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording.

    Attributes:
        path: The file.
        channels: Names of the channels; empty without a header.
        values: float32 ``[T, C]``.
        start_s: Time of the first row in seconds.
        rate_hz: Rows per second; 0: the file has no time.
    """

    path: Path
    channels: tuple[str, ...]
    values: NDArray[np.float32]
    start_s: float
    rate_hz: float

    def check(self, spec: InputSpec) -> None:
        """Check that channels and rate are those of a model.

        Raises:
            InputError: They are not, or the recording is shorter than a window.
        """
        if self.values.shape[1] != len(spec.channels) or self.channels not in ((), spec.channels):
            named = ", ".join(self.channels) or f"{self.values.shape[1]} columns without names"
            raise InputError(
                f"{self.path} has the channels {named}; expected {', '.join(spec.channels)}, in this order", EXPECTED
            )
        if self.rate_hz and spec.rate_hz and not math.isclose(self.rate_hz, spec.rate_hz, rel_tol=RATE_TOLERANCE):
            raise InputError(
                f"{self.path} has {self.rate_hz:g} rows per second, expected {spec.rate_hz:g}",
                "resample the recording to that rate",
            )
        if len(self.values) < spec.size:
            raise InputError(
                f"{self.path} has {len(self.values)} rows, fewer than a window of {spec.size}",
                "leave the recording out, or give longer ones",
            )


def csv_files(folder: Path) -> list[Path]:
    """Return the CSV files in a folder and its folders, sorted, without hidden ones; warn of links to folders."""
    paths = sorted(folder.rglob("*"))
    seen = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if links := [path for path in seen if path.is_symlink() and path.is_dir()]:
        warn_once(f"{links[0]} links to a folder, whose recordings are left out: links are not followed")
    return [path for path in seen if path.suffix.lower() == ".csv"]


def read_csv(path: Path) -> Table:
    """Read a CSV file in UTF-8, separated by commas, semicolons or tabs.

    The first row is a header if one of its cells is not a number, or if it has the numbers that pandas writes for
    columns without names.

    Raises:
        InputError: The file cannot be read, has no rows, or rows of different length.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the recording {path}: {error.strerror or error}", "check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}", EXPECTED) from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=next((mark for mark in ",;\t" if mark in first), ","))
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"row {reader.line_num} of {path}: {error}", EXPECTED) from error
    headed = bool(rows) and (
        any(np.isnan(_number(cell)) and cell.lower() != "nan" for cell in rows[0]) or _numbered(rows)
    )
    names = tuple(rows.pop(0)) if headed else ()
    lines = lines[headed:]
    if not rows:
        raise InputError(f"{path} has no rows", EXPECTED)
    width = len(names or rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise InputError(f"row {line} of {path} has {len(row)} cells, expected {width}", EXPECTED)
    check_names(path, names)
    if len({*names}) != len(names):
        raise InputError(f"{path} has two columns of one name: {', '.join(names)}", EXPECTED)
    return Table(path, names, tuple(map(list, zip(*rows, strict=True))), lines)


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse row numbers: a column without a name, or with the name that pandas then invents.

    Raises:
        InputError: There is such a column.
    """
    number = next((number for number, name in enumerate(names, 1) if _NO_NAME.fullmatch(name)), 0)
    if number:
        own = f" of its own ({names[number - 1]})" if names[number - 1] else ""
        raise InputError(
            f"column {number} of {path} has no name{own}: a row number would become a channel",
            "name it if it is a channel, else remove it (pandas: write the file with `index=False`)",
        )


def recording_of(table: Table, without: tuple[str, ...] = (), channels: tuple[str, ...] = ()) -> Recording:
    """Return the recording in a table: its columns except the time.

    Args:
        table: The table.
        without: Names of further columns that are not channels.
        channels: Names of columns that are channels, if known: a time is not among them.

    Raises:
        InputError: A cell is not a finite number, the time has a gap, or there is no channel.
    """
    time = _time_columns(table, {*without, *channels})
    ignored = {*time, *(index for index, name in enumerate(table.names) if name in without)}
    kept = [index for index in range(len(table.columns)) if index not in ignored]
    if not kept or len(time) > 1:
        what = "two time columns" if len(time) > 1 else "no channel"
        raise InputError(f"{table.path} has {what}: its columns are {', '.join(table.names)}", EXPECTED)
    values = np.stack([table.numbers(index) for index in kept], axis=1).astype(np.float32)
    start_s, rate_hz = _clock(table, time[0]) if time else (0.0, 0.0)
    names = tuple(table.names[index] for index in kept) if table.names else ()
    return Recording(table.path, names, values, start_s, rate_hz)


def window_starts(rows: int, length: int, stride: int) -> NDArray[np.int64]:
    """Return the first row of each window."""
    return np.arange(0, rows - length + 1, stride)


def cut(values: NDArray[np.float32], length: int, stride: int) -> NDArray[np.float32]:
    """Return the windows of a recording, float32 ``[N, length, C]``, from ``[T, C]``."""
    return np.stack([values[start : start + length] for start in window_starts(len(values), length, stride)])


def _time_columns(table: Table, others: Collection[str]) -> list[int]:
    """Return the columns that are a time by their names.

    ``T`` is also a temperature: it is a time only if no other column is and its values increase.
    """
    named = [index for index, name in enumerate(table.names) if name not in others and _TIME.fullmatch(name.casefold())]
    sure = [index for index in named if table.names[index] != "T"]
    return named if named and not sure and bool((np.diff(table.numbers(named[0])) > 0).all()) else sure


def _clock(table: Table, column: int) -> tuple[float, float]:
    """Return the first time in seconds and the rows per second of a time without gaps."""
    unit: Any = _TIME.fullmatch(table.names[column].casefold())
    times = table.numbers(column) * _SECONDS.get(unit[1] or "s", 1.0)
    if len(times) < 2:
        return float(times[0]), 0.0
    steps = np.diff(times)
    step = float(np.median(steps))
    bad = np.flatnonzero(np.abs(steps - step) > _GAP * step) if step > 0 else np.flatnonzero(steps <= 0)
    if len(bad):
        row = int(bad[0]) + 1
        raise table.problem(row, f"{steps[row - 1]:g} s after the row before, where the usual step is {step:g} s")
    return float(times[0]), float((len(times) - 1) / (times[-1] - times[0]))


def _numbered(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row is 0, 1, 2, … above rows that all have a decimal point, so it is not of their kind.

    With two columns it may be a time and a value.
    """
    first, *others = rows
    return (
        len(first) > 2
        and bool(others)
        and [*first] == [str(number) for number in range(len(first))]
        and all(any("." in cell for cell in row) for row in others)
    )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
