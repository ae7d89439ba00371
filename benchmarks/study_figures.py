"""The figures of a study, drawn from its CSV files: ``figures/*.png`` and ``*.svg``.

Each can be read without the text around it. Lines are means over seeds; a method has the same colour in every figure.
Without matplotlib nothing is drawn.
"""

import csv
import importlib.util
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import number
from pipeline.artifacts import write_atomic
from pipeline.progress import log
from pipeline.study.statistics import student_t_975

__all__ = ["draw_study"]

_COLORS = ("#2f7ed8", "#e07b39", "#3c9d6b", "#a25ddc", "#c9423f", "#8c6d46", "#d66ba0", "#1f9aa8", "#7a8f2b", "#4b4f8f")
_CONTROL = "#5b6470"  # ce and base: grey and dashed
_SHOWN_PP = 12  # percentage points of accuracy below the best that the curves show
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e7ec",
    "legend.frameon": False,
    "svg.hashsalt": "kdedge",
    "svg.fonttype": "none",
}

Rows = Sequence[Mapping[str, str]]
Curves = Mapping[str, Sequence[Rows]]


def draw_study(out: Path) -> list[Path]:
    """Draw what the files of a study have data for.

    Args:
        out: Directory of a study, as `pipeline.study.compare` leaves it.

    Returns:
        The files that were written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        log("figures: skipped, matplotlib is not installed (pip install matplotlib)")
        return []
    rows = [row for row in _read(out / "evaluation_results.csv") if row["status"] == "done"]
    if not rows:
        return []
    names = list(dict.fromkeys(row["method"] for row in rows))
    lengths = sorted({int(row["epochs"]) for row in rows})
    curves: dict[int, dict[str, list[Rows]]] = {length: {} for length in lengths}
    for row in rows:
        cell = out / f"e{row['epochs']}" / f"seed{row['seed']}" / row["method"] / "distill"
        for path in cell.glob("training_log_*.csv"):
            curves[int(row["epochs"])].setdefault(row["method"], []).append(_read(path))
    look = _looks(names)
    written = []
    for length in lengths:
        written += _save(
            out, f"training_curves_{length}", (10.5, 3.6), 3,
            partial(_training_curves, curves=curves[length], look=look, length=length),
        )  # fmt: skip
    adaptive = {length: {name: runs for name, runs in curves[length].items() if _changes(runs)} for length in lengths}
    if any(adaptive.values()):
        written += _save(
            out,
            "beta_timeline",
            (4.2 * len(lengths) + 1.4, 3.4),
            len(lengths),
            lambda axes: _beta(axes, adaptive, look),
        )
    written += _save(
        out, "feature_similarity", (4.2 * len(lengths) + 1.4, 3.4), len(lengths),
        lambda axes: _similarity(axes, curves, look),
    )  # fmt: skip
    size = (7.2, 1.3 + 0.3 * len(names) * len(lengths))
    written += _save(out, "accuracy", size, 1, lambda axes: _accuracy(axes[0], rows, names, lengths, look))
    scan = _read(out / "block_variances.csv")
    if scan:
        written += _save(out, "variance_scan", (7.2, 3.2), 1, lambda axes: _variance_scan(axes[0], scan))
    return written


def _save(
    out: Path, name: str, size: tuple[float, float], panels: int, paint: Callable[[Sequence[Any]], None]
) -> list[Path]:
    """Draw one figure of some panels side by side and write it in both formats."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    with rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        paint(axes)
        lines = {line.get_label(): line for one in axes for line in one.get_lines() if line.get_label()[0] != "_"}
        if len(axes) > 1 or len(lines) > 1:
            figure.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=8)
        # Nothing that changes from run to run: the same data give the same file.
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            path = folder / f"{name}.{kind}"
            write_atomic(path, buffer.getvalue())
            written.append(path)
    return written


def _training_curves(axes: Sequence[Any], curves: Curves, look: Mapping[str, Any], length: int) -> None:
    """Draw accuracy, KD loss and what the student leaves unexplained of the teacher's features, by epoch."""
    panels = (
        ("val_top1_pct", "top-1 in %", "Accuracy"),
        ("val_kd", "KD loss", "Distance to the teacher's logits"),
        ("val_hint", "share of variance unexplained", "Distance to the teacher's features"),
    )
    for one, (column, label, title) in zip(axes, panels, strict=True):
        for name, runs in curves.items():
            one.plot(*_mean(runs, column), label=name, **look[name])
        one.set_title(title, fontsize=10)
        one.set_ylabel(label)
        _epochs_axis(one)
    # The first epochs would squeeze the end, where the methods differ, into a line.
    best = max(max(values) for runs in curves.values() if (values := _mean(runs, "val_top1_pct")[1]))
    low, high = axes[0].get_ylim()
    if low < best - _SHOWN_PP:
        axes[0].set_ylim(best - _SHOWN_PP, high - (high - best) / 2)
        axes[0].set_title(f"Accuracy, from {best - _SHOWN_PP:.0f} % up", fontsize=10)
    axes[0].figure.suptitle(f"Validation images while training, {length} epochs", fontsize=11)


def _beta(axes: Sequence[Any], curves: Mapping[int, Curves], look: Mapping[str, Any]) -> None:
    """Draw beta relative to its start by epoch: the geometric mean over seeds, lines a little apart."""
    for one, (length, methods) in zip(axes, curves.items(), strict=True):
        for index, (name, runs) in enumerate(methods.items()):
            epochs, values = _mean(runs, "beta", statistics.geometric_mean)
            shares = [value / values[0] * 2 ** (0.05 * index) for value in values]
            one.step(epochs, shares, where="mid", label=name, **look[name])
        one.set_yscale("log", base=2)
        one.yaxis.set_major_formatter(lambda value, _: f"1/{1 / value:.0f}" if value < 1 else f"{value:g}")
        one.set_title(f"{length} epochs", fontsize=10)
        _epochs_axis(one)
    axes[0].set_ylabel("beta, relative to its start\n(geometric mean over seeds)")
    axes[0].figure.suptitle("Weight of the hints: halved when the validation KD loss stops improving", fontsize=11)


def _similarity(axes: Sequence[Any], curves: Mapping[int, Curves], look: Mapping[str, Any]) -> None:
    """Draw the cosine similarity of the features by epoch."""
    for one, (length, methods) in zip(axes, curves.items(), strict=True):
        for name, runs in methods.items():
            one.plot(*_mean(runs, "cosine_similarity"), label=name, **look[name])
        one.set_title(f"{length} epochs", fontsize=10)
        one.sharey(axes[0])
        _epochs_axis(one)
    axes[0].set_ylabel("cosine similarity")
    axes[0].figure.suptitle("How well the student's features predict the teacher's, linearly", fontsize=11)


def _accuracy(axes: Any, rows: Rows, names: Sequence[str], lengths: Sequence[int], look: Mapping[str, Any]) -> None:
    """Draw the mean accuracy of each method with its 95 % interval, and every seed as a small dot."""
    labels: dict[float, str] = {}
    place, several = 0.0, False
    for length in lengths:
        for name in names:
            group = [row for row in rows if row["method"] == name and int(row["epochs"]) == length]
            values = [float(row["val_top1_pct"]) for row in group]
            if not values:
                continue
            color, mean = look[name]["color"], statistics.fmean(values)
            half = 0.0
            if len(values) > 1:
                several = True
                half = student_t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
                axes.plot(values, [place + 0.22] * len(values), ".", color=color, markersize=4)
            axes.errorbar(mean, place, xerr=half or None, fmt="o", color=color, capsize=3, markersize=6)
            axes.annotate(
                f"{mean:.2f}", (mean, place), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7
            )
            labels[place] = f"{name}, {length} epochs" if len(lengths) > 1 else name
            place += 1
        place += 0.7
    axes.set_yticks(list(labels), list(labels.values()))
    axes.set_ylim(place - 1.1, -0.7)
    axes.margins(x=0.12)
    axes.set_xlabel("validation top-1 in %")
    what = "mean over seeds with 95 % interval; small dots are seeds" if several else "one seed each, so no interval"
    axes.set_title(f"Accuracy by method: {what}", fontsize=10, loc="left")


def _variance_scan(axes: Any, scan: Rows) -> None:
    """Draw the variance of every block in one cell, with the blocks marked that were chosen by it."""
    preferred = [row for row in scan if row["method"] in ("selective", "base")] or scan
    cell = [preferred[0][key] for key in ("method", "epochs", "seed")]
    shown = [row for row in scan if [row[key] for key in ("method", "epochs", "seed")] == cell]
    marked = [row["chosen"] == "1" and preferred is not scan for row in shown]
    bars = axes.bar(
        range(len(shown)),
        [float(row["variance"]) for row in shown],
        color=[_COLORS[0] if mark else "#c4ccd6" for mark in marked],
    )
    labels = ["chosen" if mark else "" for mark in marked]
    axes.bar_label(bars, labels, fontsize=8, padding=2)
    axes.set_xticks(range(len(shown)), [row["block"] for row in shown], rotation=0 if len(shown) <= 10 else 60)
    axes.set_ylabel("activation variance")
    axes.set_xlabel("block of the teacher, from shallow to deep")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    by = f", and the blocks that {cell[0]} hints at" if any(marked) else ""
    axes.set_title(f"Activation variance of the teacher's blocks{by}", fontsize=10, loc="left")


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style of each method."""
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        control = name in ("ce", "base")
        color = _CONTROL if control else _COLORS[len(looks) % len(_COLORS)]
        looks[name] = {"color": color, "linestyle": "--" if control else "-", "linewidth": 1.6}
    return looks


def _epochs_axis(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _changes(runs: Sequence[Rows]) -> bool:
    """Return whether hints were trained at all and beta was not held constant in every run."""
    return any(_series(run, "train_hint")[0] and len(set(_series(run, "beta")[1])) > 1 for run in runs)


def _mean(
    runs: Sequence[Rows], column: str, mean: Callable[[list[float]], float] = statistics.fmean
) -> tuple[list[float], list[float]]:
    """Return the epochs and the mean of a column over the runs."""
    by_epoch: dict[float, list[float]] = {}
    for run in runs:
        for epoch, value in zip(*_series(run, column), strict=True):
            by_epoch.setdefault(epoch, []).append(value)
    return list(by_epoch), [mean(values) for values in by_epoch.values()]


def _series(rows: Rows, column: str) -> tuple[list[float], list[float]]:
    """Return the epochs and the values of a column, leaving out rows without a number in it."""
    known = [(float(row["epoch"]), value) for row in rows if (value := number(row.get(column))) is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
