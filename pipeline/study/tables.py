"""The tables of a study: mean and spread per method and length, and the difference to the control."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.distill.methods import CONTROL
from pipeline.study.cells import Row
from pipeline.study.statistics import Difference, paired_difference

__all__ = ["alarms", "render", "summarise"]


def summarise(rows: Sequence[Row], control: str) -> list[dict[str, Any]]:
    """Return one entry per method and number of epochs, in the order of the rows.

    Args:
        rows: As `pipeline.study.cells.run_cells` returns them.
        control: Name of the rows that the others of the same number of epochs are compared with.

    Returns:
        Mappings with ``method``, ``epochs``, ``seeds``, ``diverged``, means over the seeds of the row's columns, ``sd``
        of the validation accuracy (None with one seed), ``difference_pp``, ``interval_pp`` (half width) and
        ``verdict`` (empty for the control and without one).
    """
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["epochs"], row["method"]), []).append(row)
    entries = []
    for (epochs, method), group in groups.items():
        done = [row for row in group if row["status"] == "done"]
        by_seed = _by_seed(done)
        difference: Difference | None = None
        if method != control:
            difference = paired_difference(by_seed, _by_seed(groups.get((epochs, control), ())))
        entry: dict[str, Any] = {
            "method": method,
            "epochs": epochs,
            "seeds": len(done),
            "diverged": len(group) - len(done),
            "sd": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
            "difference_pp": difference.mean if difference else None,
            "interval_pp": difference.half_width if difference else None,
            "verdict": difference.verdict if difference else "",
        }
        for column in _MEANS:
            values = [row[column] for row in done if row.get(column) is not None]
            # A mean over the seeds that got there would hide those that did not.
            complete = values and len(values) == len(done)
            entry[column] = statistics.fmean(values) if complete else None
        entries.append(entry)
    return entries


def alarms(summary: Sequence[Mapping[str, Any]], control: str) -> list[str]:
    """Return what a reader must know first.

    If the control is the method without a teacher, that is a sentence for a teacher that is not better than it, and for
    every method that is not; in any case one for hints that drowned the other terms
    (`pipeline.distill.stage.DROWNED_PCT`).
    """
    from pipeline.distill.stage import DROWNED_PCT

    weak = [
        f"the teacher is not better than {control}, {entry['epochs']} epochs: "
        f"{abs(entry['teacher_gap_pp']):.2f} pp below."
        for entry in summary
        if entry["method"] == control == CONTROL and entry["seeds"] and entry["teacher_gap_pp"] <= 0
    ]
    useless = [
        f"{entry['method']}, {entry['epochs']} epochs, is not better than its control {control}: "
        f"{_difference(entry)} pp ({entry['verdict']})."
        for entry in summary
        if control == CONTROL and entry["difference_pp"] is not None and entry["difference_pp"] <= 0
    ]
    drowned = [
        f"{entry['method']}, {entry['epochs']} epochs: on the first batch of {entry['drowned_epochs']:.1f} of them on "
        f"average, hints supplied more than {DROWNED_PCT:.0f} % of the gradient."
        for entry in summary
        if entry["drowned_epochs"]
    ]
    return weak + useless + drowned


def render(
    title: str,
    summary: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
    notes: Sequence[str],
    *,
    control: str,
    reach: float,
) -> str:
    """Return the Markdown page: warnings, tables, notes.

    Args:
        title: Heading.
        summary: From `summarise`.
        warnings: What a reader must see first.
        notes: How the numbers came about.
        control: Name of the control.
        reach: Validation accuracy in percent whose first epoch is in the table.
    """
    lines = [f"# {title}", ""]
    for warning in warnings:
        lines += [f"> **Alarm:** {warning}", ""]
    tested = any(entry["int8_test_top1_pct"] is not None for entry in summary)
    head = [
        "",
        "validation top-1 %",
        f"to {control}, pp (95 %)",
        "verdict",
        "validation loss",
        "teacher minus student, pp",
    ]
    head += ["INT8 test top-1 %"] * tested
    head += ["shipped", "trained", "hint maps, MB", "scan, s", "minutes", f"epochs to {reach:g} %"]
    for epochs in dict.fromkeys(entry["epochs"] for entry in summary):
        lines += [f"## {epochs} epochs", "", _line(head), "|" + "---|" * len(head)]
        for entry in summary:
            if entry["epochs"] == epochs:
                lines.append(_line(_cells(entry, control, tested)))
        lines.append("")
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


_MEANS = (
    "val_top1_pct", "val_ce", "teacher_gap_pp", "params", "trained_params", "hint_map_bytes", "scan_s", "seconds",
    "drowned_epochs", "reach_epochs", "fp32_test_top1_pct", "int8_test_top1_pct",
)  # fmt: skip


def _by_seed(rows: Sequence[Row]) -> dict[int, float]:
    return {row["seed"]: row["val_top1_pct"] for row in rows if row["status"] == "done"}


def _cells(entry: Mapping[str, Any], control: str, tested: bool) -> list[str]:
    if not entry["seeds"]:
        return [entry["method"], "diverged"]
    accuracy = _number(entry["val_top1_pct"], ".2f")
    if entry["sd"] is not None:
        accuracy += f" ± {entry['sd']:.2f} ({entry['seeds']} seeds)"
    if entry["diverged"]:
        accuracy += f", {entry['diverged']} diverged"
    return [
        entry["method"],
        accuracy,
        "control" if entry["method"] == control else _difference(entry),
        entry["verdict"],
        _number(entry["val_ce"], ".3f"),
        _number(entry["teacher_gap_pp"], ".2f"),
        *([_number(entry["int8_test_top1_pct"], ".2f")] * tested),
        f"{entry['params'] / 1e6:.2f} M",
        f"{entry['trained_params'] / 1e6:.2f} M",
        f"{entry['hint_map_bytes'] / 1e6:.1f}",
        _number(entry["scan_s"], ".1f"),
        _number(entry["seconds"] / 60, ".1f"),
        _number(entry["reach_epochs"], ".1f"),
    ]


def _difference(entry: Mapping[str, Any]) -> str:
    if entry["difference_pp"] is None:
        return "–"
    text = f"{entry['difference_pp']:+.2f}"
    return text if entry["interval_pp"] is None else f"{text} ± {entry['interval_pp']:.2f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
