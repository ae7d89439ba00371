"""The figure of a study that shows the accuracy of each method, with the difference to the control beside it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.pipeline.study.statistics import paired_difference, student_t_975

__all__ = ["paint_accuracy"]

Rows = Sequence[Mapping[str, str]]
Scores = dict[int, float]


def paint_accuracy(axes: Sequence[Any], rows: Rows, look: Mapping[str, Any], control: str) -> None:
    """Draw the accuracy of each method, mean and seeds, and beside it the difference to the control.

    Args:
        axes: Two matplotlib axes; one without a control.
        rows: Finished cells, of ``evaluation_results.csv``.
        look: Colour of each method, under ``color``.
        control: Name of what the others are compared with, or empty.
    """
    places = _places(rows)
    controls = {length: scores for name, length, scores in places.values() if name == control}
    several = len({length for _, length, _ in places.values()}) > 1
    with_interval = unpaired = False  # a mean with an interval; a difference without one
    for height, (name, length, scores) in places.items():
        color, values = look[name]["color"], list(scores.values())
        mean, half = statistics.fmean(values), None
        if len(values) > 1:
            with_interval = True
            half = student_t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
            axes[0].plot(values, [height + 0.22] * len(values), ".", color=color, markersize=4)
        _point(axes[0], mean, half, height, color, text=f"{mean:.2f}")
        if name != control and (difference := paired_difference(scores, controls.get(length, {}))):
            unpaired = unpaired or difference.half_width is None
            _point(axes[1], difference.mean, difference.half_width, height, color, text=f"{difference.mean:+.2f}")
    labels = [f"{name}, {length} epochs" if several else name for name, length, _ in places.values()]
    for one in axes:
        one.set_yticks(list(places), labels)
        one.set_ylim(max(places) + 0.6, -0.7)
        one.margins(x=0.12)
    axes[0].set_xlabel("validation top-1 in %")
    what = (
        "mean over seeds with 95 % interval; small dots are seeds" if with_interval else "one seed each, so no interval"
    )
    axes[0].set_title(what, fontsize=9, loc="left")
    if control:
        axes[1].tick_params(labelleft=False)
        axes[1].axvline(0, color=look[control]["color"], linestyle="--", linewidth=1.2)
        axes[1].set_xlabel(f"difference to {control}, percentage points")
        if not unpaired:
            what = "difference to the control, paired by seed, 95 %"
        elif with_interval:
            what = "paired by seed, 95 %; open: one seed, no interval"
        else:
            what = f"to {control}; one seed, so no interval"
        axes[1].set_title(what, fontsize=9, loc="left")


def _places(rows: Rows) -> dict[float, tuple[str, int, Scores]]:
    """Return name, epochs and accuracy by seed of each line of the figure, by its height."""
    places: dict[float, tuple[str, int, Scores]] = {}
    height = 0.0
    for length in sorted({int(row["epochs"]) for row in rows}):
        for name in dict.fromkeys(row["method"] for row in rows):
            group = [row for row in rows if row["method"] == name and int(row["epochs"]) == length]
            if group:
                places[height] = (name, length, {int(row["seed"]): float(row["val_top1_pct"]) for row in group})
                height += 1
        height += 0.7
    return places


def _point(axes: Any, mean: float, half: float | None, height: float, color: str, *, text: str) -> None:
    """Draw a mean with its interval, or open where one seed gives none, and its number above."""
    face = "white" if half is None else color
    axes.errorbar(mean, height, xerr=half, fmt="o", color=color, markerfacecolor=face, capsize=3, markersize=6)
    axes.annotate(text, (mean, height), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7)
