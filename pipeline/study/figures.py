"""The figures of a study, drawn from its CSV files: ``figures/*.png`` and ``*.svg``.

Lines are means over seeds, except of beta. A method has the same colour in every figure. Without matplotlib nothing is
drawn.
"""

import csv
import importlib.util
import io
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdedge.benchmarks.report.figures import series
from kdedge.files import write_atomic
from kdedge.manifest import load_manifest
from kdedge.pipeline.distill.blocks import COMPARED_BLOCKS, highest
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
Manifests = Sequence[Mapping[str, Any]]


def draw_study(out: Path) -> list[Path]:
    """Draw the figures that the files of a study have data for; remove the figures of an earlier call.

    Args:
        out: Directory of a study of `kdedge.pipeline.study.compare`.

    Returns:
        The written files.

    Raises:
        InputError: A cell of the table has no manifest.
    """
    if importlib.util.find_spec("matplotlib") is None:
        log("figures: skipped, matplotlib is not installed (pip install matplotlib)")
        return []
    for path in _drawn(out):
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
    for length in lengths:
        blocks = _compared_blocks(manifests[length], "; features")
        lines = [f"Validation data while training, {length} epochs{blocks}", _conditions(manifests[length])]
        with _figure(out, f"training_curves_{length}", (10.5, 3.9), 3, lines) as axes:
            _training_curves(axes, curves[length], look)
    hinted = {
        length: {name: runs for name, runs in curves[length].items() if any(_trained(run, "hint") for run in runs)}
        for length in lengths
    }
    if hinted := {length: methods for length, methods in hinted.items() if methods}:
        title = "Weight of the hints: halved when validation KD loss stalls, × its end; a line per seed, set apart"
        conditions = _conditions([manifest for length in hinted for manifest in manifests[length]])
        with _figure(out, "beta_timeline", _wide(len(hinted)), len(hinted), [title, conditions]) as axes:
            _beta(axes, hinted, look)
    if blocks := _compared_blocks(all_cells, "features"):
        title = "How well the student's features predict the teacher's, linearly"
        lines = [title, blocks, _conditions(all_cells)]
        with _figure(out, "feature_similarity", _wide(len(lengths)), len(lengths), lines) as axes:
            _similarity(axes, curves, look)
    control = next((name for name in names if name in _CONTROLS), "")
    size = 9.6 if control else 7.2, 1.7 + 0.3 * len(names) * len(lengths)
    lines = ["Accuracy on validation data by method", _conditions(all_cells)]
    with _figure(out, "accuracy", size, 2 if control else 1, lines) as axes:
        paint_accuracy(axes, rows, look, control)
    if scan := _read(out / "block_variances.csv"):
        first = next((row for row in scan if row["method"] in ("selective", "base")), scan[0])
        key = (first["method"], first["epochs"], first["seed"])
        title = "Activation variance of the teacher's blocks, in the cell {}, {} epochs, seed {}".format(*key)
        conditions = _conditions([load_manifest(_student_dir(out, *key))])
        with _figure(out, "variance_scan", (7.2, 3.7), 1, [title, conditions]) as axes:
            _variance_scan(axes[0], [row for row in scan if (row["method"], row["epochs"], row["seed"]) == key])
    return _drawn(out)


_DRAWN = re.compile(r"(training_curves_\d+|beta_timeline|feature_similarity|accuracy|variance_scan)\.(png|svg)")


def _drawn(out: Path) -> list[Path]:
    """Return the files of the figures of a study."""
    return sorted(path for path in (out / "figures").glob("*") if _DRAWN.fullmatch(path.name))


# No metadata that changes from run to run, so that the same data result in the same file.
_KINDS: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


@contextmanager
def _figure(
    out: Path, name: str, size: tuple[float, float], panels: int, title: Sequence[str]
) -> Iterator[Sequence[Any]]:
    """Yield the axes of a figure with panels side by side; then write it with its title."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    with rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        yield axes
        figure.suptitle("\n".join(title), fontsize=9.5)
        lines = {line.get_label(): line for one in axes for line in one.get_lines() if line.get_label()[0] != "_"}
        if len(axes) > 1 or len(lines) > 1:
            figure.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=8)
        for suffix, metadata in _KINDS.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], metadata=metadata)
            write_atomic(folder / f"{name}{suffix}", buffer.getvalue())


def _student_dir(out: Path, name: str, epochs: str, seed: str) -> Path:
    return out / f"e{epochs}" / f"seed{seed}" / name / "distill"


def _conditions(manifests: Manifests) -> str:
    """Return the data and the training options of these cells."""
    configs = [manifest["config"] for manifest in manifests]
    parts = (
        (sorted({manifest["facts"]["train_images"] for manifest in manifests}), "training set of {}"),
        (sorted({config["distill"]["epochs"] for config in configs}), "{} epochs"),
        (sorted({config["distill"]["recipe"] for config in configs}), "recipe {}"),
        (sorted({config["runtime"]["seed"] for config in configs}), "seed {}"),
    )
    texts = [text.format(", ".join(f"{v:,}" if isinstance(v, int) else v for v in values)) for values, text in parts]
    return "; ".join([configs[0]["data"]["source"], *texts])


def _wide(panels: int) -> tuple[float, float]:
    """Return the size of a figure with a panel per length."""
    return 4.2 * panels + 2.4, 3.7


def _compared_blocks(manifests: Manifests, what: str) -> str:
    """Return the teacher's blocks at which features are compared, or an empty string."""
    sets = {"+".join(highest(manifest["facts"]["block_variances"], COMPARED_BLOCKS)): None for manifest in manifests}
    return f"{what} at {' or '.join(sets)}" if any(sets) else ""


def _training_curves(axes: Sequence[Any], curves: Curves, look: Mapping[str, Any]) -> None:
    """Draw accuracy, KD loss and unexplained variance of the features by epoch."""
    for name, runs in curves.items():
        _curve(axes[0], runs, "val_top1_pct", name, look)
        # Other methods and hint-only epochs are far above.
        _curve(axes[1], [[row for row in run if row.get("train_kd") is not None] for run in runs], "val_kd", name, look)
        _curve(axes[2], runs, "val_hint", name, look)
    _title(axes[0], "Accuracy", "top-1 in %")
    _title(axes[1], "Distance to the teacher's logits, while KD is trained", "KD loss, each at its temperature")
    _title(axes[2], "Distance to the teacher's features", "share of variance unexplained")
    best = max(value for runs in curves.values() for value in _mean(runs, "val_top1_pct")[1])
    low, high = axes[0].get_ylim()
    if low < best - _SHOWN_PP:  # the first epochs would squeeze the end, where the methods differ
        axes[0].set_ylim(best - _SHOWN_PP, high - (high - best) / 2)
        axes[0].set_title(f"Accuracy, from {best - _SHOWN_PP:.0f} % up", fontsize=10)


def _beta(axes: Sequence[Any], curves: Mapping[int, Curves], look: Mapping[str, Any]) -> None:
    """Draw beta relative to its start by epoch: a line per seed, each a little below the last, so that all are visible.

    A cross marks the end of hints.
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
        _title(one, f"{length} epochs", "")
        one.set_xlim(right=length + 0.5)
        one.set_ylim(min(one.get_ylim()[0], 0.45), 1.1)  # the distance between lines must not look like values
    axes[0].set_ylabel("beta, relative to its start")


def _similarity(axes: Sequence[Any], curves: Mapping[int, Curves], look: Mapping[str, Any]) -> None:
    """Draw the cosine similarity of the features by epoch."""
    for one, (length, methods) in zip(axes, curves.items(), strict=True):
        for name, runs in methods.items():
            _curve(one, runs, "cosine_similarity", name, look)
        _title(one, f"{length} epochs", "")
        one.sharey(axes[0])
    axes[0].set_ylabel("cosine similarity")


def _variance_scan(axes: Any, shown: Rows) -> None:
    """Draw the variance of every block and mark the chosen ones."""
    chosen = [row["chosen"] == "1" for row in shown]
    colors = [_COLORS[0] if mark else "#c4ccd6" for mark in chosen]
    bars = axes.bar(range(len(shown)), [float(row["variance"]) for row in shown], color=colors)
    axes.bar_label(bars, ["chosen" if mark else "" for mark in chosen], fontsize=8, padding=2)
    axes.set_xticks(range(len(shown)), [row["block"] for row in shown], rotation=0 if len(shown) <= 10 else 60)
    axes.set_ylabel("activation variance")
    axes.set_xlabel("block of the teacher, from shallow to deep")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and line style of each method (the same in every study) or variation."""
    looks: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        control = name in _CONTROLS
        number = list(METHODS).index(name) if name in METHODS else index
        color = _CONTROL_COLOR if control else _COLORS[(number - 1) % len(_COLORS)]
        looks[name] = {"color": color, "linestyle": "--" if control else "-", "linewidth": 1.6}
    return looks


def _curve(axes: Any, runs: Sequence[TrainingLog], column: str, name: str, look: Mapping[str, Any]) -> None:
    """Draw the mean of a column over runs by epoch; one epoch is a point."""
    epochs, values = _mean(runs, column)
    axes.plot(epochs, values, label=name, marker="o" if len(epochs) == 1 else "", **look[name])


def _title(axes: Any, title: str, label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(label)
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _trained(run: TrainingLog, term: str) -> bool:
    """Return whether a term of the loss was trained."""
    return bool(series(run, f"train_{term}")[0])


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
