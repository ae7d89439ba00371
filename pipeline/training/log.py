"""The log of a training: one CSV row per epoch, written by `kdedge.pipeline.training.epoch_loop.EpochLoop`."""

import csv
import math
from pathlib import Path

__all__ = ["TrainingLog", "read_log"]

TrainingLog = list[dict[str, float | None]]


def read_log(path: Path) -> TrainingLog:
    """Read the log of a teacher or a student, a row per epoch.

    Returns:
        Values by column; None for a term that an epoch did not train and for values that are not finite.
    """
    with path.open(newline="") as file:
        return [{column: _finite(text) for column, text in row.items()} for row in csv.DictReader(file)]


def _finite(text: str) -> float | None:
    value = float(text or "nan")
    return value if math.isfinite(value) else None
