"""The figure of a study with the accuracy of each method and its difference to the control."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.pipeline.study.statistics import paired_difference, student_t_975

__all__ = ["paint_accuracy"]

Rows = Sequence[Mapping[str, str]]
Scores = dict[int, float]


def paint_accuracy(axes: Sequence[Any], rows: Rows, look: Mapping[str, Any], control: str) -> None:
    """Draw mean and seeds of each method, and next to them the difference to the control.

    Args:
        axes: Two matplotlib axes; one without a control.
        rows: Finished cells, of ``evaluation_results.csv``.
        look: Style of each method, with ``color``.
        control: Name of the control, or empty.
    """
    lines = _lines(rows)
    controls = {length: scores for name, length, scores in lines.values() if name == control}
    several = len(controls or {length for _, length, _ in lines.values()}) > 1
    for height, (name, length, scores) in lines.items():
        color, values = look[name]["color"], list(scores.values())
        half = None
        if len(values) > 1:
            half = student_t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
            axes[0].plot(values, [height + 0.22] * len(values), ".", color=color, markersize=4)
        _point(axes[0], statistics.fmean(values), half, height, color=color, form="{:.2f}")
        if name != control and (difference := paired_difference(scores, controls.get(length, {}))):
            _point(axes[1], difference.mean, difference.half_width, height, color=color, form="{:+.2f}")
    for one in axes:
        one.set_yticks(
            list(lines), [f"{name}, {length} epochs" if several else name for name, length, _ in lines.values()]
        )
        one.set_ylim(max(lines) + 0.6, -0.7)
        one.margins(x=0.12)
    axes[0].set_xlabel("validation top-1 in %")
    axes[0].set_title("mean with 95 % interval over seeds; open: one seed", fontsize=9, loc="left")
    if control:
        axes[1].tick_params(labelleft=False)
        axes[1].axvline(0, color=look[control]["color"], linestyle="--", linewidth=1.2)
        axes[1].set_xlabel(f"difference to {control}, percentage points")
        axes[1].set_title("paired by seed, 95 %; open: one seed", fontsize=9, loc="left")


def _lines(rows: Rows) -> dict[float, tuple[str, int, Scores]]:
    """Return name, epochs and accuracy by seed of each line of the figure, by its height."""
    groups: dict[tuple[int, str], Scores] = {}
    for row in rows:
        groups.setdefault((int(row["epochs"]), row["method"]), {})[int(row["seed"])] = float(row["val_top1_pct"])
    lengths = sorted({length for length, _ in groups})
    ordered = sorted(groups.items(), key=lambda group: group[0][0])
    return {
        index + 0.7 * lengths.index(length): (name, length, scores)
        for index, ((length, name), scores) in enumerate(ordered)
    }


def _point(axes: Any, mean: float, half: float | None, height: float, *, color: str, form: str) -> None:
    """Draw a mean with its interval and its number; open without an interval."""
    face = "white" if half is None else color
    axes.errorbar(mean, height, xerr=half, fmt="o", color=color, markerfacecolor=face, capsize=3, markersize=6)
    axes.annotate(form.format(mean), (mean, height), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7)
