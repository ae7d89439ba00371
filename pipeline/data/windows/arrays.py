"""Windows in a NumPy file: ``x`` with the windows, ``y`` with their classes, and optionally ``group``.

``x_val`` and ``y_val``, ``x_test`` and ``y_test``, ``group_val``, ``group_test`` and ``channels`` (names) are optional.
"""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdedge.errors import InputError
from kdedge.pipeline.data.arrays import read_array, read_texts, reading
from kdedge.pipeline.data.class_folders import log_once
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.windows.series import Series, Source

__all__ = ["open_window_arrays"]

_EXPECTED = (
    "expected x (numbers, with --layout NLC for [windows, samples, channels] or NCL for [windows, channels, samples]), "
    "y (integers or strings), and optionally group, channels, and x, y and group with _val and _test"
)


def open_window_arrays(config: DataConfig, file: Path) -> Source:
    """Read all windows of a NumPy file.

    Raises:
        InputError: The file cannot be read, an array is missing or not as expected, ``--layout`` is missing, or
            ``--groups`` is given.
    """
    with reading(file, _EXPECTED), zipfile.ZipFile(file) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
    if not config.layout:
        raise InputError(f"the order of the axes of x in {file} is not known", "give --layout NLC or --layout NCL")
    suffixes = ("", "_val", "_test")
    if "x" not in keys or any((f"x{suffix}" in keys) != (f"y{suffix}" in keys) for suffix in suffixes):
        raise InputError(f"{file} has the arrays {', '.join(keys) or '(none)'}", _EXPECTED)
    if config.groups:
        raise InputError(
            f"--groups {config.groups} names a column or folder, which {file} has not",
            "leave it out: the groups of windows are in the array group",
        )
    used = {"channels", *(f"{name}{suffix}" for name in ("x", "y", "group") for suffix in suffixes)}
    if unused := [key for key in keys if key not in used]:
        log_once(f"{file}: ignoring the arrays {', '.join(unused)}")
    series: list[Series] = []
    shapes = set()
    for part, suffix in (("train", ""), ("val", "_val"), ("test", "_test")):
        if f"x{suffix}" not in keys:
            continue
        windows = _windows(file, f"x{suffix}", config.layout)
        shapes.add(windows.shape[1:])
        labels = read_texts(file, f"y{suffix}", _EXPECTED)
        names = [f"x{suffix}[{index}]" for index in range(len(windows))]
        groups = read_texts(file, f"group{suffix}", _EXPECTED) if f"group{suffix}" in keys else names
        for key, values in ((f"y{suffix}", labels), (f"group{suffix}", groups)):
            if len(values) != len(windows):
                raise InputError(f"{key} of {file} has {len(values):,} values for {len(windows):,} windows", _EXPECTED)
        known = part if part != "train" or len({f"x{other}" for other in ("_val", "_test")} & {*keys}) else ""
        series += [
            Series(name, window, label, group or name, known)
            for name, window, label, group in zip(names, windows, labels, groups, strict=True)
        ]
    if len(shapes) > 1:
        raise InputError(
            f"the windows of {file} have different shapes: {', '.join(map(str, sorted(shapes)))}", _EXPECTED
        )
    length, count = shapes.pop()
    if config.window not in (0, length):
        raise InputError(
            f"the windows of {file} have {length} samples, and --window is {config.window}", "leave it out"
        )
    unnamed = [f"channel {i + 1}" for i in range(count)]
    channels = read_texts(file, "channels", _EXPECTED) if "channels" in keys else unnamed
    if len(channels) != count:
        raise InputError(f"channels of {file} has {len(channels)} names for {count} channels", _EXPECTED)
    return Source(file, series, tuple(channels), config.rate, is_cut=True)


def _windows(file: Path, key: str, layout: str) -> NDArray[np.float32]:
    """Return windows, float32 ``[N, L, C]``."""
    values = read_array(file, key, _EXPECTED)
    if values.ndim != 3 or values.dtype.kind not in "iuf" or 0 in values.shape:
        raise InputError(f"{key} of {file} is {values.dtype} {list(values.shape)}", _EXPECTED)
    windows = np.ascontiguousarray(values if layout == "NLC" else values.transpose(0, 2, 1), np.float32)
    if len(bad := np.argwhere(~np.isfinite(windows))):
        window, sample, channel = bad[0].tolist()
        raise InputError(
            f"{key} of {file} has a NaN or infinity in window {window}, sample {sample}, channel {channel}",
            "leave that window out",
        )
    return windows
