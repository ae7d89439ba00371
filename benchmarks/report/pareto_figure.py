"""The figure of several runs, accuracy against latency, readable without its context."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.benchmarks.report.compare import host_name, is_noisy

__all__ = ["PICTURE_SIZE", "paint_picture"]

PICTURE_SIZE = (7.2, 4.4)  # inches
_COLOR, _DOMINATED, _GREY, _NOISY = "#2f7ed8", "#a9b1bc", "#7a8491", "#d0453e"
_LABEL_SIZE = 8
_PLACES = ((-5, 4), (-5, -4), (5, 4), (5, -4), (-5, 14), (5, 14), (-5, -14), (5, -14))  # of a label, in points
_LONGEST_LABEL = 36  # characters: less than half the width of the figure


def paint_picture(axes: Any, table: Mapping[str, Any]) -> None:
    """Draw top-1 against latency: FP32 hollow, INT8 filled, a line between the two of a run, dominated ones grey.

    Args:
        axes: Matplotlib axes.
        table: From `kdedge.benchmarks.report.compare.tabulate`, of reports of one host.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = [row for row in table["rows"] if row["p50_ms"] is not None]
    axes.set_xscale("log")
    for run in dict.fromkeys(row["run"] for row in rows):
        pair = [row for row in rows if row["run"] == run]
        axes.plot([row["p50_ms"] for row in pair], [row["top1_pct"] for row in pair], color=_DOMINATED, linewidth=1,
                  zorder=2)  # fmt: skip
        for row in pair:
            _paint_row(axes, row)
    for label, face, color in (
        ("INT8", _COLOR, _COLOR),
        ("FP32", "none", _COLOR),
        ("dominated: another is no slower and no less accurate", _DOMINATED, _DOMINATED),
    ):
        axes.scatter([], [], s=42, facecolors=face, edgecolors=color, linewidths=1.5, label=label)
    axes.margins(x=0.08, y=0.12)
    low, high = _limits(axes, rows)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 30 else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    first = next(iter(table["reports"].values()))
    word = first.get("unit", "image")
    axes.set_xlabel(f"median ms per {word}, batch 1, one thread (log scale)\n{host_name(first['host'])}")
    axes.set_ylabel(f"top-1 in % with 95 % interval\n{first['test_images']:,} test {word}s of {first['data']}")
    axes.grid()
    axes.figure.legend(*axes.get_legend_handles_labels(), ncols=3, loc="outside upper right", fontsize=8)
    # A copied figure needs its limits.
    doubts = ["noisy: do not quote"] if any(is_noisy(row) for row in rows) else []
    if doubts := [*doubts, *table["notes"]]:
        axes.set_title("\n".join(doubts), fontsize=8, color=_NOISY, loc="left")
    _paint_labels(axes, rows)


def _paint_row(axes: Any, row: Mapping[str, Any]) -> None:
    """Draw a point with its interval, marked if noisy."""
    color = _DOMINATED if row["dominated_by"] else _COLOR
    low, high = row["ci95_pct"]
    axes.errorbar(
        row["p50_ms"], row["top1_pct"], yerr=[[row["top1_pct"] - low], [high - row["top1_pct"]]], fmt="o",
        color=color, markerfacecolor=color if row["model"] == "int8" else axes.get_facecolor(), markersize=6.5,
        markeredgewidth=1.5, elinewidth=1, capsize=2.5, zorder=3 if row["dominated_by"] else 4,
    )  # fmt: skip
    if is_noisy(row):
        axes.annotate(
            "noisy", (row["p50_ms"], low), xytext=(0, -3), textcoords="offset points", ha="center", va="top",
            fontsize=7, color=_NOISY,
        )  # fmt: skip


def _paint_labels(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the label of each run next to its fastest point, without covering points, lines or other labels."""
    import numpy as np
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # the layout decides the positions
    runs = [[row for row in rows if row["run"] == run] for run in dict.fromkeys(row["run"] for row in rows)]
    taken = []
    for pair in runs:
        spots = axes.transData.transform([(row["p50_ms"], row["top1_pct"]) for row in pair])
        line = np.linspace(spots[0], spots[-1], 40)
        taken += [Bbox.from_extents(x - 1, y - 1, x + 1, y + 1) for x, y in line]
        for (x, _), row in zip(spots, pair, strict=True):
            (_, low), (_, high) = axes.transData.transform([(row["p50_ms"], end) for end in row["ci95_pct"]])
            taken.append(Bbox.from_extents(x - 8, low, x + 8, high))
    for pair in runs:
        first = pair[0]
        color = {"color": _GREY} if all(row["dominated_by"] for row in pair) else {}
        label = axes.annotate(
            _short_label(first), (first["p50_ms"], first["top1_pct"]), xytext=_PLACES[0],
            textcoords="offset points", fontsize=_LABEL_SIZE, **color,
        )  # fmt: skip
        # First above and left of the point, where only points that dominate it can be; last there again.
        for across, up in (*_PLACES, _PLACES[0]):
            label.set(position=(across, up), ha="right" if across < 0 else "left", va="top" if up < 0 else "bottom")
            box = label.get_window_extent()
            if not box.count_overlaps(taken) and axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1:
                break
        taken.append(box)


def _limits(axes: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the ends of a latency axis with room for every label left of its point."""
    low, high = (math.log(end) for end in axes.get_xlim())
    points = 0.82 * 72 * PICTURE_SIZE[0]  # width of the axes
    for row in rows:
        share = (0.58 * _LABEL_SIZE * len(_short_label(row)) + 10) / points
        low = min(low, (math.log(row["p50_ms"]) - share * high) / (1 - share))
    return math.exp(low), math.exp(high)


def _short_label(row: Mapping[str, Any]) -> str:
    label = str(row["label"])
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
