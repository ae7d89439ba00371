"""The figures of the report, drawn with matplotlib in two themes.

`draw_figures` writes the light ones to ``figures/*.png`` and returns both for embedding into ``report.html``.
Without matplotlib the report has only tables.
"""

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.benchmarks.report.details import unit
from kdedge.benchmarks.report.mistake_figures import grid_size, matrix_size, paint_confusions, paint_mistakes
from kdedge.benchmarks.report.pareto_figure import PICTURE_SIZE, paint_picture
from kdedge.benchmarks.report.quantization_figures import paint_candidates, paint_sensitivity
from kdedge.benchmarks.report.signal_figure import examples_size, paint_examples
from kdedge.benchmarks.stability import STEADY
from kdedge.benchmarks.units import number, short_provider
from kdedge.errors import InputError
from kdedge.files import disk_errors, write_atomic
from kdedge.ownership import holds_nothing, not_ours
from kdedge.progress import log

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Figure", "draw_comparison", "draw_figures", "render", "series"]

_CREATOR = "kdedge figure"  # in the metadata of a file, marks it as a figure of kdedge

_FP32, _INT8, _GREY, _NOISY = "#8a94a6", "#2f7ed8", "#888888", "#d0453e"
_PALETTE = ("#2f7ed8", "#e07b39", "#3c9d6b", "#a25ddc", "#8a94a6")
_MOST_ROWS = 40
_HIGHER = ("p90_ms", "p95_ms", "p99_ms")
_THEMES = {
    "light": {"face": "#ffffff", "text": "#1c2530", "grid": "#e3e7ec"},
    "dark": {"face": "#161b22", "text": "#d8dee6", "grid": "#2b333d"},
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: Name of its file without suffix.
        section: The section of the report that it belongs to.
        title: Its heading.
        alt: Alternative text.
        light: PNG for light pages.
        dark: PNG for dark ones.
    """

    name: str
    section: str
    title: str
    alt: str
    light: bytes
    dark: bytes


def draw_figures(
    report: Mapping[str, Any],
    out_dir: Path,
    mistakes: "npt.NDArray[np.uint8] | None" = None,
    examples: "Mapping[str, npt.NDArray[np.float32]] | None" = None,
) -> list[Figure]:
    """Draw the figures for which the report has data.

    Args:
        report: The content of ``report.json``.
        out_dir: Directory for the PNG files; created if needed.
        mistakes: The images of ``mistakes`` of the report, uint8 ``[N, S, S, 3]``; None: unknown.
        examples: A normalised window of each class of a signal, ``[C, L]``; None: unknown, or images.

    Returns:
        The figures in the order of the report; none without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        log("figures: skipped, matplotlib is not installed (pip install matplotlib)")
        return []
    training, word = report.get("training") or [], unit(report)
    wanted: list[tuple[str, str, str, str, Callable[[Any], None], tuple[float, float]]] = []
    for provider in dict.fromkeys(row["provider"] for row in report["latency"]):
        rows = [row for row in report["latency"] if row["provider"] == provider]
        short = short_provider(provider)
        file = "latency" if short == "CPU" else f"latency_{short.lower().replace(' ', '_')}"
        wanted.append(
            (file, "latency", f"Latency per {word}, {short}",
             f"Bars: median latency per {word} on {short} of FP32 and INT8 by batch size, with higher percentiles",
             partial(_latency, rows=rows, word=word), (7.2, 3.6))
        )  # fmt: skip
    table = report.get("beside")
    if table and any(row["p50_ms"] for row in table["rows"]):
        wanted.append(
            ("beside", "beside", "Accuracy against latency, with other runs",
             "Dots: top-1 accuracy against median latency of FP32 and INT8 of this and other runs",
             partial(paint_picture, table=table), PICTURE_SIZE)
        )  # fmt: skip
    for what, plural in (("class", "classes"), ("group", "groups")):
        rows = [
            {**row, "name": _drawable(str(row[what]), instead=f"{what} {index}")}
            for index, row in enumerate(report.get(f"per_{what}") or [])
            if row["n"]
        ]
        if rows:
            wanted.append(
                (f"per_{what}", f"per_{what}", f"Top-1 accuracy per {what}",
                 f"Dots: top-1 accuracy of each {what}, FP32 and INT8", partial(_accuracies, rows=rows, plural=plural),
                 (7.2, 1.2 + 0.22 * min(len(rows), _MOST_ROWS)))
            )  # fmt: skip
    per_class = report.get("per_class") or []
    names = {row["class"]: _drawable(row["class"], instead=f"class {index}") for index, row in enumerate(per_class)}
    if examples:
        drawable = [names[name] for name in examples]
        wanted.append(
            ("examples", "per_class", "A test window of each class", "Curves: one window of each class, by channel",
             partial(paint_examples, examples=list(examples.values()), names=drawable,
                     spec=report["accuracy"]["input"]), examples_size(len(examples)))
        )  # fmt: skip
    if report.get("confusions") is not None:
        seen = [row for row in per_class if row["n"]]
        wanted.append(
            ("confusion", "mistakes", "Confusion matrix", "Matrix: predicted class by class, INT8",
             partial(paint_confusions, rows=seen, wrong=report["confusions"], names=names, word=word),
             matrix_size(len(seen)))
        )  # fmt: skip
    if mistakes is not None and len(mistakes):
        wanted.append(
            ("mistakes", "mistakes", "Most confident mistakes: prediction in red, class below",
             "Images with the predicted class, its probability, and the class",
             partial(paint_mistakes, rows=report["mistakes"], images=mistakes, names=names), grid_size(len(mistakes)))
        )  # fmt: skip
    if series(training, "train_loss")[0] or series(training, "val_top1_pct")[0]:
        wanted.append(
            ("training", "training", "Training of the student", "Curves: loss terms and validation accuracy by epoch",
             partial(_training, rows=training), (7.2, 3.6))
        )  # fmt: skip
    if series(training, "beta")[0]:
        wanted.append(
            ("beta", "training", "Beta, the weight of the hints",
             "Steps: beta by epoch, with the cosine similarity of features", partial(_beta, rows=training), (7.2, 2.8))
        )  # fmt: skip
    if quantization := report.get("quantization"):
        layers = quantization["sensitivity"]["layers"]
        wanted.append(
            ("candidates", "quantization", "Candidates", "Dots: SQNR of the logits against latency by format",
             partial(paint_candidates, record=quantization), (7.2, 4.0))
        )  # fmt: skip
        wanted.append(
            ("sensitivity", "quantization", "Noise by layer", "Bars: share of the logits' noise by layer",
             partial(paint_sensitivity, rows=layers), (7.2, 1.2 + 0.22 * min(len(layers), 30)))
        )  # fmt: skip
    figures = []
    for name, section, title, alt, paint, size in wanted:
        light, dark = (render(paint, size, theme) for theme in ("light", "dark"))
        out_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(out_dir / f"{name}.png", light)
        figures.append(Figure(name, section, title, alt, light, dark))
    return figures


def draw_comparison(table: Mapping[str, Any], file: Path) -> None:
    """Draw accuracy against latency of several runs.

    Args:
        table: From `kdedge.benchmarks.report.compare.tabulate`, of reports of one host.
        file: A ``.png`` or ``.svg`` file; an earlier figure of kdedge is replaced.

    Raises:
        InputError: The suffix is another one, no report has a latency, matplotlib is missing, or the file is not a
            figure of kdedge.
        StageError: The file cannot be written.
    """
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"cannot draw {file}: it ends neither with .png nor .svg", "for example --figure students.png")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a figure needs matplotlib, which is not installed", "pip install matplotlib")
    if all(row["p50_ms"] is None for row in table["rows"]):
        raise InputError(
            "no report has a latency on the CPU at batch 1 with one thread, so the figure would be empty",
            "measure it: `kdedge benchmark --latency-batches 1 --latency-threads 1 --out RUN`",
        )
    if not holds_nothing(file) and not (file.is_file() and _CREATOR.encode() in file.read_bytes()):
        raise not_ours(file, "it is not one of its figures", flag="--figure")
    content = render(partial(paint_picture, table=table), PICTURE_SIZE, kind=kind)
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)


def render(paint: Callable[[Any], None], size: tuple[float, float], theme: str = "light", kind: str = "png") -> bytes:
    """Draw one figure.

    Args:
        paint: Draws on matplotlib axes.
        size: Width and height in inches.
        theme: ``light`` or ``dark``.
        kind: ``png`` or ``svg``.

    Returns:
        The content of the file.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    colors = _THEMES[theme]
    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
        # Class names are the user's; a dollar sign in one does not begin a formula.
        "text.parse_math": False,
        "svg.hashsalt": "kdedge",
        "svg.fonttype": "none",
        **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), colors["face"]),
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), colors["text"]
        ),
        "grid.color": colors["grid"],
    }
    buffer = io.BytesIO()
    # Figure without pyplot: no global state, no display.
    with rc_context(style):
        canvas = Canvas(figsize=size, dpi=150, layout="constrained")
        paint(canvas.subplots())
        # No version, no date: the same data produces the same file.
        metadata = {"Software": _CREATOR} if kind == "png" else {"Date": None, "Creator": _CREATOR}
        canvas.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _latency(axes: Any, rows: Sequence[Mapping[str, Any]], word: str) -> None:
    """Draw the median latency per input of each model as a bar, with ticks at the known higher percentiles.

    Args:
        axes: Matplotlib axes.
        rows: ``latency`` of the report, of one provider.
        word: Word for one input.
    """
    cases = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))
    many_threads = len({row["threads"] for row in rows}) > 1
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        color = {"fp32": _FP32, "int8": _INT8}.get(model, _PALETTE[index % len(_PALETTE)])
        found = [row for row in rows if row["model"] == model]
        spots = [cases.index((row["threads"], row["batch"])) + (index - (len(models) - 1) / 2) * width for row in found]
        heights = [row["p50_ms"] / row["batch"] for row in found]
        axes.bar(spots, heights, width * 0.94, label=str(model).upper(), color=color)
        for spot, height, row in zip(spots, heights, found, strict=True):
            higher = [row[key] / row["batch"] for key in _HIGHER if row.get(key)]
            axes.vlines([spot] * len(higher[-1:]), height, higher[-1:], color=_GREY, linewidth=1.2)
            axes.scatter([spot] * len(higher), higher, s=60, marker="_", color=_GREY, linewidths=1.4, zorder=3)
            # Left of the ticks: it is the height of the bar.
            axes.annotate(
                f"{height:.3g}" if height >= 0.1 else f"{height:.2g}", (spot - 0.46 * width, height),
                xytext=(1, 2), textcoords="offset points", fontsize=7, color="black" if _steady(row) else _NOISY,
            )  # fmt: skip
    if ticks := [key.removesuffix("_ms") for key in _HIGHER if any(row.get(key) for row in rows)]:
        axes.scatter([], [], s=60, marker="_", color=_GREY, linewidths=1.4, label=f"{', '.join(ticks)} where known")
    axes.set_xticks(
        range(len(cases)),
        [f"batch {batch}" + f"\n{threads} thread{'s' * (threads > 1)}" * many_threads for threads, batch in cases],
    )
    axes.set_ylabel(f"median ms per {word}")
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.legend(ncols=len(models) + 1, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    # A copied figure needs the verdict.
    if noisy := [row for row in rows if not _steady(row)]:
        which = "noisy" if len(noisy) == len(rows) else "red numbers are noisy"
        axes.set_title(f"{which}: do not quote", fontsize=9, color=_NOISY, loc="left")


def _steady(row: Mapping[str, Any]) -> bool:
    """Return whether a latency may be quoted."""
    return bool(row["trust"]["verdict"] == STEADY)


def _accuracies(axes: Any, rows: Sequence[Mapping[str, Any]], plural: str) -> None:
    """Draw FP32 and INT8 accuracy of each class or group as two dots on a line, the worst ones if there are many."""
    known = sorted(rows, key=lambda row: row["int8_top1_pct"])[:_MOST_ROWS]
    spots = range(len(known))
    fp32 = [row["fp32_top1_pct"] for row in known]
    int8 = [row["int8_top1_pct"] for row in known]
    axes.hlines(spots, fp32, int8, color=_GREY, linewidth=2, alpha=0.6)
    axes.scatter(fp32, spots, label="FP32", s=42, facecolors="none", edgecolors=_FP32, linewidths=2, zorder=3)
    axes.scatter(int8, spots, label="INT8", s=22, color=_INT8, zorder=4)
    axes.set_yticks(spots, [str(row["name"]) for row in known])
    axes.invert_yaxis()
    chosen = f" (the {len(known)} worst of {len(rows)} {plural})" if len(known) < len(rows) else ""
    axes.set_xlabel(f"top-1 in %{chosen}")
    axes.grid(axis="x")
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)


def _drawable(name: str, instead: str) -> str:
    """Return a class name, or ``instead`` if the font lacks one of its characters."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return name if all(ord(character) in known for character in name) else instead


def _training(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss terms on the left axis and validation accuracy on the right."""
    names = {"train_loss": "loss", "train_kd": "KD", "train_hint": "hint", "train_ce": "CE"}
    for index, (key, label) in enumerate(names.items()):
        epochs, values = series(rows, key)
        if epochs:
            style = "-" if key == "train_loss" else "--"
            axes.plot(epochs, values, style, label=label, color=_PALETTE[(index + 1) % 5], linewidth=1.6)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y")
    _right_axis(axes, rows, "val_top1_pct", "validation top-1", unit=" in %")


def _beta(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw beta by epoch, with its reductions, and the cosine similarity on the right axis."""
    epochs, values = series(rows, "beta")
    axes.step(epochs, values, where="mid", color=_PALETTE[1], linewidth=2, label="beta")
    axes.set_xlabel("epoch")
    axes.set_ylabel("beta")
    axes.set_ylim(bottom=0, top=max(values) * 1.15 or 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y")
    for epoch, before, after in zip(epochs[1:], values, values[1:], strict=False):
        if after < before:
            axes.annotate(f"{after:g}", (epoch, after), textcoords="offset points", xytext=(0, 5), fontsize=8)
    _right_axis(axes, rows, "cosine_similarity", "cosine similarity")


def _right_axis(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, unit: str = "") -> None:
    """Draw a column on a right axis, and the legend of all lines above the figure."""
    handles = axes.get_lines()
    epochs, values = series(rows, key)
    if epochs:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        handles = [*handles, *right.plot(epochs, values, color=_INT8, linewidth=2, label=label)]
        right.set_ylabel(label + unit)
    axes.legend(handles=handles, ncols=len(handles), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)


def series(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of a column of a training log, without rows that lack a number."""
    points = [(number(row.get("epoch")), number(row.get(column))) for row in rows]
    known = [(epoch, value) for epoch, value in points if epoch is not None and value is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]
