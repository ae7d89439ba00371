"""The data set of windows: groups are divided, windows are cut, and the training windows set the statistics."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdedge.dataset import Split
from kdedge.errors import InputError
from kdedge.inputs import InputSpec, signal_input
from kdedge.pipeline.data.class_folders import is_label, warn_missing
from kdedge.pipeline.data.duplicates import find_copies, same
from kdedge.pipeline.data.items import Item
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.parts import check_groups, divide
from kdedge.pipeline.data.user_images import source_name
from kdedge.pipeline.data.windows.series import Series, Source
from kdedge.progress import warn_once
from kdedge.recordings import cut

__all__ = ["Windows", "open_windows", "window_copies"]

LEAST_WINDOW = 16


@dataclass(frozen=True, eq=False)
class Windows:
    """A data set of windows.

    Attributes:
        root: The folder or file.
        class_names: Names of the classes, sorted.
        spec: The input of models.
        parts: Windows, labels and groups of ``train``, ``val`` and ``test``.
        recordings: Label and number of rows of every recording; empty: the data are windows already.
    """

    root: Path
    class_names: tuple[str, ...]
    spec: InputSpec
    parts: dict[str, Split]
    recordings: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """Kind and name of the folder or file."""
        return source_name("windows", self.root)

    def train(self) -> Split:
        """Return the training and validation windows."""
        return self.undecoded()

    def undecoded(self) -> Split:
        """Return all training and validation windows."""
        train, val = self.parts["train"], self.parts["val"]
        images, labels = (np.concatenate([getattr(one, key) for one in (train, val)]) for key in ("images", "labels"))
        validation = np.arange(len(labels)) >= len(train)
        groups = np.concatenate([_groups(train), _groups(val)])
        return Split(images, labels, self.class_names, None, validation, groups, self.spec)

    def decoded(self, some: Split) -> Split:
        """Return ``some``: windows are never encoded."""
        return some

    def test(self) -> Split:
        """Return the test windows."""
        return self.parts["test"]

    def test_counts(self) -> list[int]:
        """Return the number of test windows of each class."""
        return list(map(int, np.bincount(self.parts["test"].labels, minlength=len(self.class_names))))

    def train_sha256(self) -> str:
        """Hash the windows, labels and groups of training and validation, and their rate, which the model records."""
        return self._hash(("train", "val"), *([self.spec.rate_hz] if self.spec.rate_hz else []))

    def test_sha256(self) -> str:
        """Hash the windows, labels and groups of the test."""
        return self._hash(("test",))

    def warn_duplicates(self) -> None:
        """Warn of test windows that are also training or validation windows, such as those of a copied recording."""
        if copies := window_copies(*(self.parts[name] for name in ("train", "val", "test")))["test_copies"]:
            warn_once(
                f"{self.root}: {len(copies)} of {len(self.parts['test'])} test windows are copies of training or "
                "validation windows: the measured accuracy is too high"
            )

    def _hash(self, names: Sequence[str], *more: float) -> str:
        total = hashlib.sha256(repr((self.spec.shape, self.spec.channels, self.class_names, *more)).encode())
        for name in names:
            part = self.parts[name]
            for array in (part.images, part.labels):
                total.update(repr((name, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
            total.update("\0".join(_groups(part).tolist()).encode())
        return total.hexdigest()


def open_windows(config: DataConfig, path: Path) -> Windows:
    """Read a data set of windows.

    Raises:
        InputError: A file is missing, damaged or not as expected, a label is empty or cannot be a line of text, or a
            class has too few groups to divide.
    """
    from kdedge.pipeline.data.windows.arrays import open_window_arrays
    from kdedge.pipeline.data.windows.folder import open_recordings
    from kdedge.pipeline.data.windows.long_table import open_long_table

    if not path.exists():
        raise InputError(f"{path} does not exist", "give the path of a folder, or of a .npz, .csv or .parquet file")
    source = (
        open_recordings if path.is_dir() else open_window_arrays if path.suffix.lower() == ".npz" else open_long_table
    )(config, path)
    if bad := [one for one in source.series if not one.label or not is_label(one.label)]:
        raise InputError(
            f"{bad[0].name} of {path} has the label {bad[0].label!r}", "give it a label, on one line, or leave it out"
        )
    length = _length(source, config.window)
    names = sorted({one.label for one in source.series})
    if len(names) < 2:
        raise InputError(f"{path} has {len(names)} class ({', '.join(names)})", "expected at least two")
    divided = _divide(source, names, config)
    for part in ("val", "test"):
        present = {one.label for one in divided[part]}
        if missing := [name for name in names if name not in present]:
            warn_missing(f"{path}, {part}", missing, "windows")
    stride = config.stride or max(1, length // 2)
    parts = {
        part: _windows(series, names, length, stride if part == "train" else length) for part, series in divided.items()
    }
    train = parts["train"].images
    mean, deviation = train.mean(axis=(0, 1), dtype=np.float64), train.std(axis=(0, 1), dtype=np.float64)
    # A channel that is constant while training may vary later: its deviation, of rounding, would magnify that.
    deviation[deviation <= np.finfo(np.float32).eps * np.abs(mean)] = 1.0
    spec = signal_input(
        length, source.channels, mean.astype(np.float32), (1 / deviation).astype(np.float32), source.rate_hz
    )
    made = {
        part: Split(one.images, one.labels, tuple(names), None, None, one.groups, spec) for part, one in parts.items()
    }
    recordings = tuple((names.index(one.label), len(one.values)) for one in source.series if not source.is_cut)
    return Windows(path, tuple(names), spec, made, recordings)


def window_copies(train: Split, val: Split, test: Split) -> dict[str, list[tuple[int, int]]]:
    """Return the copies of each kind among these windows in this order, see `find_copies`."""
    parts = (train, val, test)
    digests = [hashlib.sha256(window.tobytes()).digest() for part in parts for window in part.images]
    labels = np.concatenate([part.labels for part in parts])
    return find_copies(same(digests), labels, np.arange(len(labels)) >= len(train) + len(val))


def _length(source: Source, window: int) -> int:
    """Return the length of a window: ``--window``, or that of all series."""
    shortest, longest = (choose(source.series, key=lambda one: len(one.values)) for choose in (min, max))
    if not window and len(shortest.values) != len(longest.values):
        raise InputError(
            f"{shortest.name} of {source.path} has {len(shortest.values)} rows, {longest.name} has "
            f"{len(longest.values)}",
            "give --window N to cut windows of N rows, or make all recordings equally long",
        )
    length = window or len(shortest.values)
    if len(shortest.values) < length:
        raise InputError(
            f"{shortest.name} of {source.path} has {len(shortest.values)} rows, fewer than --window {length}",
            "leave that recording out, or give a smaller --window",
        )
    if length < LEAST_WINDOW:
        raise InputError(f"the windows have {length} samples", f"expected at least {LEAST_WINDOW}")
    return length


def _divide(source: Source, names: Sequence[str], config: DataConfig) -> dict[str, list[Series]]:
    """Return the series of ``train``, ``val`` and ``test``; groups stay in one part."""
    parts: dict[str, list[Item]] = {}
    for index, one in enumerate(source.series):
        item = Item(source.path, names.index(one.label), str(index), one.name, one.group)
        parts.setdefault(one.part or "train", []).append(item)
    check_groups(source.path, parts)
    if "train" not in parts:
        raise InputError(f"{source.path} has no training recordings", "add them")
    divided = divide(parts, names, source.path, config.val_fraction, config.test_fraction)
    return {part: [source.series[int(item.name)] for item in items] for part, items in divided.items()}


def _windows(series: Sequence[Series], names: Sequence[str], length: int, stride: int) -> Split:
    windows = [cut(one.values, length, stride) for one in series]
    counts = [len(one) for one in windows]
    labels = np.repeat([names.index(one.label) for one in series], counts).astype(np.int64)
    return Split(np.concatenate(windows), labels, groups=np.repeat([one.group for one in series], counts))


def _groups(split: Split) -> NDArray[np.str_]:
    assert split.groups is not None
    return split.groups
