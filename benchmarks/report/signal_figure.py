"""The figure of example windows of a signal, one row per class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["examples_size", "paint_examples"]

_MOST_CLASSES = 20
_HALF_ROW = 3.0  # standard deviations that a row has room for


def examples_size(classes: int) -> tuple[float, float]:
    """Return width and height of the figure in inches."""
    return 7.2, 0.8 + 0.7 * min(classes, _MOST_CLASSES)


def paint_examples(
    axes: Any, examples: Sequence[npt.NDArray[np.float32]], names: Sequence[str], spec: Mapping[str, Any]
) -> None:
    """Draw one window of each class, every channel around its mean and in units of its standard deviation.

    Args:
        axes: Matplotlib axes.
        examples: A normalised window of each class, ``[C, L]``.
        names: Drawable names of the classes.
        spec: The ``input`` of the report.
    """
    shown = list(zip(names, examples, strict=True))[:_MOST_CLASSES]
    time = np.arange(spec["window"]) / (spec["rate_hz"] or 1)
    for row, (_, window) in enumerate(shown):
        for index, (channel, values) in enumerate(zip(spec["channels"], window, strict=True)):
            height = np.clip(values, -_HALF_ROW, _HALF_ROW) / (2 * _HALF_ROW) - row
            axes.plot(time, height, color=f"C{index % 10}", linewidth=1, label=channel if row == 0 else None)
    axes.set_yticks([-row for row in range(len(shown))], [name for name, _ in shown])
    axes.set_ylim(-len(shown) + 0.4, 0.6)
    axes.set_xlim(time[0], time[-1])
    axes.set_xlabel("seconds" if spec["rate_hz"] else "sample")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False)
