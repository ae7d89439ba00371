"""Classifies recordings of a signal with a bundle: one prediction per window.

    kdedge predict BUNDLE recording.csv

Requires numpy and onnxruntime. Columns are checked by their names. The start of a window is read from the time column.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdedge.benchmarks.session import Model, run_model
from kdedge.errors import InputError
from kdedge.export.bundle.answers import answers
from kdedge.recordings import csv_files, cut, read_csv, recording_of, window_starts

__all__ = ["predict_recordings"]


def predict_recordings(
    model: Model,
    labels: list[str],
    paths: Iterable[Path],
    *,
    top_k: int,
    failed: Callable[[InputError], None] | None,
) -> Iterator[dict[str, Any]]:
    """Classify the windows of recordings, one after the other and without overlap.

    Args:
        model: The open model.
        labels: Names of its classes.
        paths: CSV files, and folders of them.
        top_k: Number of classes to return per window.
        failed: Called with the error of every bad file. Default: the first error is raised.

    Yields:
        ``file``, ``row`` (the first of the window, from 0), ``start_s`` (its time; None: the rate is unknown), and the
        keys of `kdedge.export.bundle.predict.predict`.

    Raises:
        InputError: A file is missing or unreadable, or has other channels or another rate than the model.
    """
    for file in itertools.chain.from_iterable(map(_files, paths)):
        try:
            yield from _classify(model, labels, file, top_k)
        except InputError as error:
            if failed is None:
                raise
            failed(error)


def _files(path: Path) -> list[Path]:
    """Return a file, or those of a folder; `_classify` refuses a folder without any."""
    return (csv_files(path) or [path]) if path.is_dir() else [path]


def _classify(model: Model, labels: list[str], file: Path, top_k: int) -> Iterator[dict[str, Any]]:
    """Yield the answers of one recording."""
    if file.is_dir():
        raise InputError(f"{file} has no recordings", "expected files ending in .csv")
    spec, recording = model.spec, recording_of(read_csv(file), channels=model.spec.channels)
    recording.check(spec)
    logits = run_model(model, np.ascontiguousarray(cut(recording.values, spec.size, spec.size)))
    rate = recording.rate_hz or spec.rate_hz
    rows = window_starts(len(recording.values), spec.size, spec.size).tolist()
    for row, answer in zip(rows, answers([str(file)] * len(rows), logits, labels, top_k), strict=True):
        start_s = round(recording.start_s + row / rate, 6) if rate else None
        yield {"file": answer.pop("file"), "row": row, "start_s": start_s, **answer}
