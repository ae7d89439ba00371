"""Draw the accuracy front: INT8 accuracy of students against latency and arithmetic.

    python experiments/front_figure.py

The left panel has the median latency at batch 1 with one thread, on one CPU of ``latency.csv`` in
``artifacts/reference/front``. The right panel has multiply-accumulates, with models that others published
(``published.csv``): their accuracy is FP32, and none of them has a published latency on a CPU.
"""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdedge.benchmarks.report.file import load_report

FRONT = Path(__file__).resolve().parents[1] / "artifacts" / "reference" / "front"
_CPU = "AMD EPYC"
_TICKS = (3, 5, 10, 20, 40, 80, 150)
_OURS, _OTHERS = "#0b5fa5", "#8a5a00"
_OFFSETS = {"right": ((6, 0), "left"), "left": ((-6, 3), "right"), "above": ((6, 7), "left")}


def main() -> None:
    """Write ``front.png``."""
    reports = [load_report(file.parent) for file in sorted(FRONT.glob("*/report.json"))]
    published = _rows("published.csv")
    int8_ms = {row["student"]: float(row["int8_p50_ms"]) for row in _rows("latency.csv") if row["cpu"] == _CPU}
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for report in reports:
        name, top1 = report["student"]["arch"], report["accuracy"]["onnx_int8_top1_pct"]
        low, high = report["accuracy"]["onnx_int8_ci95_pct"]
        for axes, x in ((left, int8_ms[name]), (right, report["student"]["macs"] / 1e6)):
            axes.errorbar(x, top1, [[top1 - low], [high - top1]], fmt="o", color=_OURS, capsize=2, markersize=5)
            _label(axes, name, (x, top1), _OURS, _side(name, axes is right))
    for row in published:
        x, top1 = float(row["mmac"]), float(row["top1_pct"])
        right.plot(x, top1, "D", markerfacecolor="none", color=_OTHERS, markersize=5)
        _label(right, row["name"], (x, top1), _OTHERS, row["label"])
    left.set(xlabel=f"INT8 latency on {_CPU}, ms (median, batch 1, one thread)", ylabel="CIFAR-10 test top-1, %")
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
    return "left" if name == "res-xs" or (arithmetic and name in ("lite", "lite-s", "res-s")) else "right"


def _rows(name: str) -> list[dict[str, str]]:
    with (FRONT / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _label(axes: Axes, text: str, at: tuple[float, float], color: str, side: str) -> None:
    offset, align = _OFFSETS[side]
    axes.annotate(text, at, offset, textcoords="offset points", ha=align, va="center", fontsize=8, color=color)


if __name__ == "__main__":
    main()
