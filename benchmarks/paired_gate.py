"""The gate for the predictions of any two models to the same images, as JSON values, on the console and as Markdown.

`gate_pairs` returns the values; `print_gate` and `gate_markdown` show them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdedge.benchmarks.accuracy import (
    answer_changes,
    balanced_pct,
    hardly_recognised,
    per_class_table,
    per_group_table,
    top1_pct,
)
from kdedge.benchmarks.gate import judge
from kdedge.benchmarks.grouped import sampling_of
from kdedge.benchmarks.prediction_files import Pairs
from kdedge.benchmarks.units import format_pct
from kdedge.progress import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["gate_markdown", "gate_pairs", "print_gate"]

_MOST_CLASSES = 20
"""Number of classes in the table that a person reads. JSON has all."""

_HEADING = ["class", "images", "FP32 %", "INT8 %", "loss pp", "only FP32", "only INT8"]


def gate_pairs(pairs: Pairs, limit_pp: float, *, balanced: bool) -> dict[str, Any]:
    """Judge the predictions of two models.

    Args:
        pairs: The predictions.
        limit_pp: The loss that is refused, in percentage points, greater than 0.
        balanced: Judge balanced accuracy instead of top-1.

    Returns:
        ``metric``, ``gate`` (see `kdedge.benchmarks.gate.judge`), ``images``, ``accuracy``, ``per_class`` (the largest
        loss first), ``per_group`` (the lowest INT8 accuracy first), ``answer_changes`` and ``classes_without_images``.
    """
    fp32, int8 = pairs.fp32 == pairs.labels, pairs.int8 == pairs.labels
    gate = judge(
        fp32,
        int8,
        limit_pp,
        changed=int((pairs.fp32 != pairs.int8).sum()),
        labels=pairs.labels,
        class_names=pairs.class_names,
        balanced=balanced,
        groups=pairs.groups,
    )
    sampling = sampling_of(fp32, int8, pairs.groups)
    accuracy: dict[str, Any] = {}
    for name, right in (("fp32", fp32), ("int8", int8)):
        accuracy |= {
            f"{name}_top1_pct": top1_pct(right),
            f"{name}_ci95_pct": sampling.wilson_pct(int(right.sum()), len(right)),
            f"{name}_balanced_pct": balanced_pct(right, pairs.labels),
        }
    rows = per_class_table(pairs.labels, pairs.fp32, pairs.int8, pairs.class_names, sampling)
    return {
        "metric": "balanced" if balanced else "top1",
        "images": len(pairs.labels),
        "gate": gate,
        "accuracy": accuracy,
        "per_class": sorted(rows, key=lambda row: (row["n"] == 0, -(_loss(row) or 0))),
        "per_group": per_group_table(pairs.groups, fp32, int8),
        "answer_changes": answer_changes(pairs.labels, pairs.fp32, pairs.int8, pairs.class_names),
        "classes_without_images": [row["class"] for row in rows if not row["n"]],
    }


def print_gate(result: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a result of `gate_pairs` in 80 columns; default: on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(width=80, highlight=False)
    verdict = result["gate"]["verdict"]
    style = {"passed": "bold green", "failed": "bold red"}.get(verdict, "bold yellow")
    console.print(Text(f"gate: {verdict}", style=style))
    console.print(printable(result["gate"]["reason"]), markup=False)
    console.print()
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in _facts(result):
        facts.add_row(name, Text(value))
    console.print(facts)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, title in enumerate(_HEADING):
        grid.add_column(title, justify="right" if index else "left", overflow="fold")
    for row in _class_rows(result):
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
    for note in _notes(result):
        console.print(note, markup=False)


def gate_markdown(result: Mapping[str, Any]) -> str:
    """Return a result of `gate_pairs` as Markdown for a pull request."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in _class_rows(result)]
    lines = [f"**INT8 gate: {result['gate']['verdict']}.** {printable(result['gate']['reason'])}", ""]
    lines += [f"- {name}: {value}" for name, value in _facts(result)]
    lines += ["", f"| {' | '.join(_HEADING)} |", "| --- |" + " ---: |" * (len(_HEADING) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [line for note in _notes(result) for line in ("", note)]
    return "\n".join(lines) + "\n"


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    gate, accuracy, images = result["gate"], result["accuracy"], result["images"]
    balanced = result["metric"] == "balanced"
    interval = f"{gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f}"
    method = "bootstrap" if balanced else "Tango"
    of_groups = [] if gate["groups"] is None else [("groups", f"{gate['groups']:,}{_worst_group(result)}")]
    return [
        ("test images", f"{images:,}"),
        *of_groups,
        *((f"{name.upper()} top-1", _share(accuracy, name)) for name in ("fp32", "int8")),
        *((f"{name.upper()} balanced", format_pct(accuracy[f"{name}_balanced_pct"])) for name in ("fp32", "int8")),
        (
            f"{'balanced' if balanced else 'top-1'} loss",
            f"{gate['loss_pp']:+.2f} pp (95 % interval, {method}: {interval}), limit {gate['limit_pp']:g}",
        ),
        ("changed predictions", f"{gate['changed_answers']:,} ({100 * gate['changed_answers'] / images:.2f} %)"),
        (
            "correct in one only",
            f"{gate['fp32_only_right']:,} images in FP32, {gate['int8_only_right']:,} in INT8",
        ),
    ]


def _worst_group(result: Mapping[str, Any]) -> str:
    """Return the accuracy of the group with the lowest as text; empty: no group has a name."""
    if not result["per_group"]:
        return ""
    row = result["per_group"][0]
    accuracies = f"INT8 {row['int8_top1_pct']:.2f} %, FP32 {row['fp32_top1_pct']:.2f} % of {row['n']:,} images"
    return f"; worst: {printable(row['group'])}, {accuracies}"


def _share(accuracy: Mapping[str, Any], name: str) -> str:
    low, high = accuracy[f"{name}_ci95_pct"]
    return f"{accuracy[f'{name}_top1_pct']:.2f} % ({low:.2f} to {high:.2f})"


def _loss(row: Mapping[str, Any]) -> float | None:
    """Return the loss of recall of a class in percentage points; None: it has no images."""
    return row["fp32_top1_pct"] - row["int8_top1_pct"] if row["n"] else None


def _class_rows(result: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            printable(row["class"]),
            f"{row['n']:,}",
            f"{row['fp32_top1_pct']:.2f}",
            f"{row['int8_top1_pct']:.2f}",
            f"{_loss(row):+.2f}",
            str(row["fp32_only_right"]),
            str(row["int8_only_right"]),
        ]
        for row in result["per_class"][:_MOST_CLASSES]
        if row["n"]
    ]


def _notes(result: Mapping[str, Any]) -> Sequence[str]:
    without = result["classes_without_images"]
    shown = min(_MOST_CLASSES, len(result["per_class"]) - len(without))
    left = len(result["per_class"]) - len(without) - shown
    named = ", ".join(map(printable, without[:_MOST_CLASSES])) + (" …" if len(without) > _MOST_CLASSES else "")
    weak = printable(hardly_recognised(result["per_class"]))
    notes = [weak] if weak else []
    notes += [f"{left:,} classes with a smaller loss are not shown; --json prints all"] if left else []
    return notes + ([f"classes without test images, not part of any number: {named}"] if without else [])
