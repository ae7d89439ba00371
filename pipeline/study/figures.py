"""The figures of a study, drawn from its CSV files: ``figures/*.png`` and ``*.svg``.

Each can be read without the text around it. Lines are means over seeds, except of beta; a method has the same colour in
every figure. Without matplotlib nothing is drawn.
"""

import csv
import importlib.util
import io
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdedge.benchmarks.report.figures import series
from kdedge.files import write_atomic
from kdedge.manifest import load_manifest
from kdedge.pipeline.distill.blocks import JUDGED_BLOCKS, highest
from kdedge.pipeline.distill.methods import CONTROL, METHODS
from kdedge.pipeline.study.accuracy_figure import paint_accuracy
from kdedge.pipeline.training.log import TrainingLog, read_log
from kdedge.progress import log

__all__ = ["draw_study"]

_COLORS = ("#2f7ed8", "#e07b39", "#3c9d6b", "#a25ddc", "#c9423f", "#8c6d46", "#d66ba0", "#1f9aa8", "#7a8f2b", "#4b4f8f")
_CONTROL_COLOR = "#5b6470"  # and dashed
_CONTROLS = (CONTROL, "base")
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
Curves = Mapping[str, Sequence[TrainingLog]]


def draw_study(out: Path) -> list[Path]:
    """Draw what the files of a study have data for, in place of what an earlier call has drawn.

    Args:
        out: Directory of a study, as `kdedge.pipeline.study.compare` leaves it.

    Returns:
        The files that were written.

    Raises:
        InputError: A cell of the table has no manifest.
    """
    if importlib.util.find_spec("matplotlib") is None:
        log("figures: skipped, matplotlib is not installed (pip install matplotlib)")
        return []
    for name in ("training_curves_*", "beta_timeline", "feature_similarity", "accuracy", "variance_scan"):
        for kind in ("png", "svg"):
            for path in (out / "figures").glob(f"{name}.{kind}"):
                path.unlink()
    rows = [row for row in _read(out / "evaluation_results.csv") if row["status"] == "done"]
    if not rows:
        return []
    names = list(dict.fromkeys(row["method"] for row in rows))
    lengths = sorted({int(row["epochs"]) for row in rows})
    curves: dict[int, dict[str, list[TrainingLog]]] = {length: {} for length in lengths}
    manifests: dict[int, list[dict[str, Any]]] = {length: [] for length in lengths}
    for row in rows:
        cell = _student_dir(out, row["method"], row["epochs"], row["seed"])
        manifests[int(row["epochs"])].append(load_manifest(cell))
        for path in cell.glob("training_log_*.csv"):
            curves[int(row["epochs"])].setdefault(row["method"], []).append(read_log(path))
    look, all_cells = _looks(names), [manifest for group in manifests.values() for manifest in group]
    written = []
    for length in lengths:
        blocks = _blocks(manifests[length])
        title = f"Validation images while training, {length} epochs{_means(curves[length])}"
        title += f"; features at {blocks}" if blocks else ""
        written += _save(
            out, f"training_curves_{length}", (10.5, 3.9), 3, [title, _conditions(manifests[length])],
            paint=partial(
                _training_curves, curves=curves[length], look=look, temperatures=_temperatures(manifests[length])
            ),
        )  # fmt: skip
    with_hints = {
        length: {name: runs for name, runs in curves[length].items() if _trains(runs, "hint")} for length in lengths
    }
    if hinted := {length: methods for length, methods in with_hints.items() if methods}:
        title = "Weight of the hints: halved when validation KD loss stalls, × its end; a line per seed, set apart"
        written += _save(
            out, "beta_timeline", _wide(hinted), len(hinted),
            [title, _conditions([manifest for length in hinted for manifest in manifests[length]])],
            paint=lambda axes: _beta(axes, hinted, look),
        )  # fmt: skip
    if _blocks(all_cells):
        title = "How well the student's features predict the teacher's, linearly"
        title += next((text for length in lengths if (text := _means(curves[length]))), "")
        written += _save(
            out, "feature_similarity", _wide(lengths), len(lengths),
            [title, f"at {_blocks(all_cells)}", _conditions(all_cells)],
            paint=lambda axes: _similarity(axes, curves, look),
        )  # fmt: skip
    control = next((name for name in names if name in _CONTROLS), "")
    written += _save(
        out, "accuracy", (9.6 if control else 7.2, 1.7 + 0.3 * len(names) * len(lengths)), 2 if control else 1,
        ["Accuracy on validation images by method", _conditions(all_cells)],
        paint=lambda axes: paint_accuracy(axes, rows, look, control),
    )  # fmt: skip
    scan = _read(out / "block_variances.csv")
    if scan:
        scanned, shown, marked = _one_scan(scan)
        by = f", and those that {scanned[0]} hints at" if any(marked) else ""
        title = f"Activation variance of the teacher's blocks{by}"
        conditions = _conditions([load_manifest(_student_dir(out, *scanned))])
        written += _save(
            out, "variance_scan", (7.2, 3.7), 1,
            [title, "in the cell {}, {} epochs, seed {}".format(*scanned), conditions],
            paint=lambda axes: _variance_scan(axes[0], shown, marked),
        )  # fmt: skip
    return written


def _student_dir(out: Path, name: str, epochs: str, seed: str) -> Path:
    return out / f"e{epochs}" / f"seed{seed}" / name / "distill"


def _temperatures(manifests: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({manifest["config"]["distill"]["temperature"] for manifest in manifests})


def _conditions(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Say on what and how these cells were trained."""
    configs = [manifest["config"] for manifest in manifests]
    parts = (
        (sorted({manifest["facts"]["train_images"] for manifest in manifests}), "{} training images"),
        (sorted({config["distill"]["epochs"] for config in configs}), "{} epochs"),
        (sorted({config["distill"]["recipe"] for config in configs}), "recipe {}"),
        (sorted({config["runtime"]["seed"] for config in configs}), "seed {}"),
    )
    texts = [text.format(", ".join(f"{v:,}" if isinstance(v, int) else v for v in values)) for values, text in parts]
    return "; ".join([configs[0]["data"]["source"], *texts])


def _wide(lengths: Collection[int]) -> tuple[float, float]:
    """Return the size of a figure with a panel per length."""
    return 4.2 * len(lengths) + 2.4, 3.7


def _means(curves: Curves) -> str:
    """Say that lines are means, if some are."""
    return ", means over seeds" if any(len(runs) > 1 for runs in curves.values()) else ""


def _labels(curves: Curves) -> dict[str, str]:
    """Return the name of each line, with its number of seeds where that differs."""
    counts = {name: len(runs) for name, runs in curves.items()}
    if len(set(counts.values())) <= 1:
        return {name: name for name in counts}
    return {name: f"{name} ({count} seed{'s' * (count > 1)})" for name, count in counts.items()}


def _blocks(manifests: Sequence[Mapping[str, Any]]) -> str:
    """Name the teacher's blocks at which features are compared."""
    sets = {highest(manifest["facts"]["block_variances"], JUDGED_BLOCKS): None for manifest in manifests}
    return " or ".join("+".join(blocks) for blocks in sets)


def _save(
    out: Path, name: str, size: tuple[float, float], panels: int, title: Sequence[str],
    *, paint: Callable[[Sequence[Any]], None],
) -> list[Path]:  # fmt: skip
    """Draw one figure of some panels side by side under a title and write it in both formats."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    with rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        paint(axes)
        figure.suptitle("\n".join(title), fontsize=9.5)
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


def _training_curves(
    axes: Sequence[Any], curves: Curves, look: Mapping[str, Any], temperatures: Sequence[float]
) -> None:
    """Draw accuracy, KD loss and what the student leaves unexplained of the teacher's features, by epoch."""
    own = f", each at its own T ({', '.join(f'{t:g}' for t in temperatures)})" if len(temperatures) > 1 else ""
    panels = (
        ("val_top1_pct", "top-1 in %", "Accuracy"),
        ("val_kd", f"KD loss{own}", "Distance to the teacher's logits"),
        ("val_hint", "share of variance unexplained", "Distance to the teacher's features"),
    )
    labels = _labels(curves)
    for one, (column, label, title) in zip(axes, panels, strict=True):
        for name, runs in curves.items():
            _curve(one, *_mean(runs, column), labels[name], look[name])
        one.set_title(title, fontsize=10)
        one.set_ylabel(label)
        _epochs_axis(one)
    # The first epochs would squeeze the end, where the methods differ, into a line.
    tops = {name: _mean(runs, "val_top1_pct")[1] for name, runs in curves.items()}
    best = max(map(max, tops.values()))
    low, high = axes[0].get_ylim()
    if low < best - _SHOWN_PP:
        axes[0].set_ylim(best - _SHOWN_PP, high - (high - best) / 2)
        axes[0].set_title(f"Accuracy, from {best - _SHOWN_PP:.0f} % up", fontsize=10)
        ends = {name: values[-1] for name, values in tops.items() if values[-1] < best - _SHOWN_PP}
        _off_scale(axes[0], [f"{name}, {end:.1f} % at the end" for name, end in ends.items()], "bottom")
    # So would the methods, and the epochs, that do not learn from the teacher's logits.
    losses = {name: _mean(runs, "val_kd") for name, runs in curves.items()}
    with_kd = {name: _mean(runs, "train_kd")[0] for name, runs in curves.items()}
    learnt = [
        loss for name, points in losses.items() for epoch, loss in zip(*points, strict=True) if epoch in with_kd[name]
    ]
    if learnt:
        low, high = min(learnt), max(learnt)
        margin = 0.05 * (high - low) or 0.05 * high
        beyond = [f"{name}, up to {max(loss):.2g}" for name, (_, loss) in losses.items() if max(loss) > high + margin]
        axes[1].set_ylim(low - margin, high + margin)
        _off_scale(axes[1], beyond, "top")


def _off_scale(axes: Any, names: Sequence[str], corner: str) -> None:
    """Name in a free corner on the right, ``top`` or ``bottom``, the lines that cannot be seen as a whole."""
    if names:
        height, text = {"top": 0.97, "bottom": 0.03}[corner], "off scale: " + "\n".join(names)
        axes.text(0.97, height, text, transform=axes.transAxes, ha="right", va=corner, fontsize=8)


def _beta(axes: Sequence[Any], curves: Mapping[int, Curves], look: Mapping[str, Any]) -> None:
    """Draw beta relative to its start by epoch: a line per seed, each a little below the last, so that none hides.

    A cross marks where hints ended.
    """
    for one, (length, methods) in zip(axes, curves.items(), strict=True):
        lines = [(name, run) for name, runs in methods.items() for run in runs]
        for index, (name, run) in enumerate(lines):
            epochs, values = series(run, "beta")
            hinted = [0.985**index * value / values[0] for value in values if value]
            one.step(epochs[: len(hinted)], hinted, where="mid", label=name, **look[name])
            if len(hinted) < len(values):
                end = epochs[len(hinted) - 1], hinted[-1]
                one.plot(*end, "x", color=look[name]["color"], markersize=7, gid="hints_end")
        one.set_yscale("log", base=2)
        one.yaxis.set_major_formatter(lambda value, _: f"1/{1 / value:.0f}" if value < 1 else f"{value:g}")
        one.set_title(f"{length} epochs", fontsize=10)
        _epochs_axis(one)
        one.set_xlim(right=length + 0.5)
        one.set_ylim(min(one.get_ylim()[0], 0.45), 1.1)  # or what sets lines apart would look like values
    axes[0].set_ylabel("beta, relative to its start")


def _similarity(axes: Sequence[Any], curves: Mapping[int, Curves], look: Mapping[str, Any]) -> None:
    """Draw the cosine similarity of the features by epoch."""
    for one, (length, methods) in zip(axes, curves.items(), strict=True):
        labels = _labels(methods)
        for name, runs in methods.items():
            _curve(one, *_mean(runs, "cosine_similarity"), labels[name], look[name])
        one.set_title(f"{length} epochs", fontsize=10)
        one.sharey(axes[0])
        _epochs_axis(one)
    axes[0].set_ylabel("cosine similarity")


def _one_scan(scan: Rows) -> tuple[list[str], Rows, list[bool]]:
    """Return the (name, epochs, seed) of the cell whose scan is shown, its rows, and which blocks it chose."""
    preferred = [row for row in scan if row["method"] in ("selective", "base")] or scan
    cell = [preferred[0][key] for key in ("method", "epochs", "seed")]
    shown = [row for row in scan if [row[key] for key in ("method", "epochs", "seed")] == cell]
    return cell, shown, [row["chosen"] == "1" and preferred is not scan for row in shown]


def _variance_scan(axes: Any, shown: Rows, marked: Sequence[bool]) -> None:
    """Draw the variance of every block, with the chosen ones marked."""
    bars = axes.bar(
        range(len(shown)),
        [float(row["variance"]) for row in shown],
        color=[_COLORS[0] if mark else "#c4ccd6" for mark in marked],
    )
    axes.bar_label(bars, ["chosen" if mark else "" for mark in marked], fontsize=8, padding=2)
    axes.set_xticks(range(len(shown)), [row["block"] for row in shown], rotation=0 if len(shown) <= 10 else 60)
    axes.set_ylabel("activation variance")
    axes.set_xlabel("block of the teacher, from shallow to deep")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style of each method, the same in every study, or variation."""
    looks: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        control = name in _CONTROLS
        number = list(METHODS).index(name) if name in METHODS else place
        color = _CONTROL_COLOR if control else _COLORS[(number - 1) % len(_COLORS)]
        looks[name] = {"color": color, "linestyle": "--" if control else "-", "linewidth": 1.6}
    return looks


def _curve(axes: Any, epochs: list[float], values: list[float], label: str, look: Mapping[str, Any]) -> None:
    """Draw a curve by epoch; one epoch is no line but a point."""
    axes.plot(epochs, values, label=label, marker="o" if len(epochs) == 1 else "", **look)


def _epochs_axis(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _trains(runs: Sequence[TrainingLog], term: str) -> bool:
    """Return whether a term of the loss was trained."""
    return any(series(run, f"train_{term}")[0] for run in runs)


def _mean(runs: Sequence[TrainingLog], column: str) -> tuple[list[float], list[float]]:
    """Return the epochs and the mean of a column over the runs."""
    by_epoch: dict[float, list[float]] = {}
    for run in runs:
        for epoch, value in zip(*series(run, column), strict=True):
            by_epoch.setdefault(epoch, []).append(value)
    return list(by_epoch), [statistics.fmean(values) for values in by_epoch.values()]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
