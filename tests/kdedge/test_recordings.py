"""Which columns of a recording are channels, and which row is a header; the bundle's predict.py reads the same."""

from pathlib import Path

import numpy as np
import pytest

from kdedge.errors import InputError
from kdedge.export.bundle import standalone_signal
from kdedge.recordings import read_csv, recording_of


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("header", "row", "channels"),
    [
        # A temperature is a channel, also next to a time.
        ("T,ax", "{falling},{other}", ("T", "ax")),
        ("T,ax", "{constant},{other}", ("T", "ax")),
        ("time,T", "{time},{falling}", ("T",)),
        ("T,t_ms", "{time},{time}", ("T",)),
        # A time is not.
        ("T,ax", "{time},{other}", ("ax",)),
        ("t,ax", "{time},{other}", ("ax",)),
        ("timestamp,ax", "{time},{other}", ("ax",)),
        ("T (s),ax", "{time},{other}", ("ax",)),
    ],
)
def test_a_column_called_t_is_a_time_only_if_it_can_be_one(
    tmp_path: Path, header: str, row: str, channels: tuple[str, ...]
) -> None:
    rows = [
        row.format(time=index / 10, falling=20 - index / 3, constant=21.5, other=index % 3 - 0.5) for index in range(20)
    ]
    file = write(tmp_path / "a.csv", header, *rows)
    recording = recording_of(read_csv(file))
    assert (recording.channels, recording.values.shape) == (channels, (20, len(channels)))
    values, _, rate = standalone_signal.load(file, list(channels), 0.0, 16)
    assert np.array_equal(values, recording.values)
    assert rate == recording.rate_hz


def test_a_temperature_that_rises_is_a_channel_of_a_model_that_has_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "T,ax", *(f"{20 + index / 3},0.5" for index in range(20)))
    assert recording_of(read_csv(file)).channels == ("ax",)
    assert recording_of(read_csv(file), channels=("T", "ax")).channels == ("T", "ax")
    assert standalone_signal.load(file, ["T", "ax"], 0.0, 16)[0].shape == (20, 2)


@pytest.mark.parametrize("name", ["time_us", "time (\u00b5s)", "Time [\u03bcs]", "t_\u00b5s"])
def test_a_time_in_microseconds_may_have_either_sign(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "a.csv", f"{name},ax", *(f"{1000 * index},0.5" for index in range(20)))
    recording = recording_of(read_csv(file))
    assert (recording.channels, round(recording.rate_hz)) == (("ax",), 1000)
    assert standalone_signal.load(file, ["ax"], 0.0, 16)[2] == recording.rate_hz


@pytest.mark.parametrize("name", ["t", "time", "timestamp"])
def test_a_time_that_goes_back_is_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "a.csv", f"{name},ax", "0.0,1.5", "0.1,1.5", "0.0,1.5")
    with pytest.raises(InputError, match=r"row 4 of .*: -0\.1 s after the row before"):
        recording_of(read_csv(file))


def test_numbers_above_rows_with_decimal_points_are_a_header_of_pandas(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "0,1,2", *(f"{index / 7},0.0,1.0" for index in range(20)))
    recording = recording_of(read_csv(file))
    assert (recording.channels, len(recording.values)) == (("0", "1", "2"), 20)
    assert len(standalone_signal.load(file, ["0", "1", "2"], 0.0, 16)[0]) == 20


@pytest.mark.parametrize(
    "lines",
    [
        ("0,1,2", "3,4,5", "6,7,8"),  # integers, as the first row is
        ("0,1,2",),
        ("0,1", "0.1,0.99", "0.2,0.96"),  # a time and a cosine without superfluous zeros
        ("0,1,3", "0.5,0.5,0.5", "0.5,0.5,0.5"),
        ("0.0,1.0,2.0", "0.5,0.5,0.5", "0.5,0.5,0.5"),
    ],
)
def test_a_row_of_numbers_that_may_be_data_is_data(tmp_path: Path, lines: tuple[str, ...]) -> None:
    table = read_csv(write(tmp_path / "a.csv", *lines))
    assert (table.names, len(table.lines)) == ((), len(lines))
