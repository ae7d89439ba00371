"""Draw the accuracy front: INT8 accuracy of students against latency and arithmetic.

    python experiments/front_figure.py

The left panel has the median latency at batch 1 with one thread, from ``artifacts/reference/front/NAME/report.json``.
The right panel has multiply-accumulates, with models that others published: their accuracy is FP32,
and none of them has a published latency on a CPU (``published.csv``).
"""

import csv
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdedge.benchmarks.report.file import load_report

FRONT = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "front"
_TICKS = (3, 5, 10, 20, 40, 80, 150)
_OURS, _OTHERS = "#0b5fa5", "#8a5a00"
_OFFSETS = {"right": ((6, 0), "left"), "left": ((-6, 3), "right"), "below": ((7, -9), "left")}


def main() -> None:
    """Write ``front.png``."""
    reports = [load_report(file.parent) for file in sorted(FRONT.glob("*/report.json"))]
    with (FRONT / "published.csv").open(newline="") as file:
        published = list(csv.DictReader(file))
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for report in reports:
        name, top1 = report["student"]["arch"], report["accuracy"]["onnx_int8_top1_pct"]
        low, high = report["accuracy"]["onnx_int8_ci95_pct"]
        for axes, x in ((left, _latency_ms(report)), (right, report["student"]["macs"] / 1e6)):
            axes.errorbar(x, top1, [[top1 - low], [high - top1]], fmt="o", color=_OURS, capsize=2, markersize=5)
            _label(axes, name, (x, top1), _OURS, _side(name, axes is right))
    for row in published:
        x, top1 = float(row["mmac"]), float(row["top1_pct"])
        right.plot(x, top1, "D", markerfacecolor="none", color=_OTHERS, markersize=5)
        _label(right, row["name"], (x, top1), _OTHERS, row["label"])
    left.set(xlabel="median latency of INT8, ms (batch 1, one thread)", ylabel="CIFAR-10 test top-1, %")
    left.margins(x=0.15)
    right.set(xlabel="million multiply-accumulates", xscale="log", xlim=(1.2, 700))
    right.set_xticks(_TICKS, labels=[str(tick) for tick in _TICKS], minor=False)
    right.set_xticks([], minor=True)
    left.set_title("kdedge, INT8", loc="left", color=_OURS, fontsize=10)
    right.set_title("with others, FP32 as published (no latency)", loc="left", color=_OTHERS, fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(FRONT / "front.png", dpi=150, metadata={"Software": "kdedge"})


def _side(name: str, arithmetic: bool) -> str:
    """Return the side of a label on which no interval is."""
    return "left" if name == "res-xs" or (arithmetic and name in ("lite", "lite-s")) else "right"


def _latency_ms(report: dict[str, Any]) -> float:
    (row,) = [
        row
        for row in report["latency"]
        if (row["provider"], row["model"], row["batch"], row["threads"]) == ("CPUExecutionProvider", "int8", 1, 1)
    ]
    return float(row["p50_ms"])


def _label(axes: Axes, text: str, at: tuple[float, float], color: str, side: str) -> None:
    offset, align = _OFFSETS[side]
    axes.annotate(text, at, offset, textcoords="offset points", ha=align, va="center", fontsize=8, color=color)


if __name__ == "__main__":
    main()
