"""A comparison of two or more reports as text: in 80 columns on the console, or as Markdown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kdedge.benchmarks.report.compare import host_name, is_noisy
from kdedge.benchmarks.stability import stability_word
from kdedge.benchmarks.units import short_provider

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["comparison_markdown", "print_comparison"]

_NOISY = "noisy: do not quote"
_RULE = "beaten by (dominated): that row is at least as accurate and at least as fast"


class _Table(NamedTuple):
    """A table as text.

    Attributes:
        cells: Rows of cells, the heading first.
        text_columns: Columns that are not numbers.
        dimmed: Rows that are shown dimmed, counted from the first below the heading.
    """

    cells: list[list[str]]
    text_columns: set[int]
    dimmed: Sequence[bool] = ()


def print_comparison(comparison: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a comparison in 80 columns.

    Args:
        comparison: From `compare_reports` or `tabulate` of `kdedge.benchmarks.report.compare`.
        console: Default: standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(width=80, highlight=False)
    origins = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    above = ""
    for letter, report in _reports(comparison).items():
        origins.add_row(letter, Text(report["report"], overflow="fold"))
        if (origin := _describe(report)) != above:
            origins.add_row("", Text(origin, overflow="fold"))
        above = origin
    console.print(origins)
    for note in comparison["notes"]:
        console.print(Text(f"mind: {note}", style="bold yellow"))
    if "rows" in comparison:
        tables = [_run_table(comparison), _model_table(comparison)]
    else:
        tables = [_value_table(comparison), _latency_table(comparison)]
    for cells, text_columns, dimmed in tables:
        if len(cells) == 1:
            continue
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for index, title in enumerate(cells[0]):
            grid.add_column(title, justify="left" if index in text_columns else "right", overflow="fold")
        for row, dim in zip(cells[1:], dimmed or [False] * len(cells[1:]), strict=True):
            texts = [Text(cell, style="yellow" if cell == "noisy" else "") for cell in row]
            grid.add_row(*texts, style="dim" if dim else None)
        console.print()
        console.print(grid)
    for line in _footnotes(comparison):
        console.print(line)


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """Return a comparison, as for `print_comparison`, as Markdown for a pull request."""
    lines = [
        f"- **{letter}**: {report['report']}: {_describe(report)}" for letter, report in _reports(comparison).items()
    ]
    lines += [f"- **Mind:** {note}" for note in comparison["notes"]]
    if "rows" in comparison:
        tables = [_wide_table(comparison)]
    else:
        tables = [_value_table(comparison), _latency_table(comparison)]
    for cells, text_columns, _ in tables:
        if len(cells) > 1:
            rule = ["---" if index in text_columns else "---:" for index in range(len(cells[0]))]
            escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
            lines += ["", *(f"| {' | '.join(row)} |" for row in escaped)]
            lines.insert(1 - len(cells), f"|{'|'.join(rule)}|")
    footnotes = _footnotes(comparison)
    return "\n".join([*lines, *([""] if footnotes else []), *footnotes]) + "\n"


def _reports(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origins of the compared reports by their letters."""
    return comparison.get("reports") or {"A": comparison["a"], "B": comparison["b"]}


def _describe(origin: Mapping[str, Any]) -> str:
    host = f"{host_name(origin['host'])}, onnxruntime {origin['host']['onnxruntime']}"
    commit = f", commit {origin['commit']}" if origin["commit"] else ""
    return f"{host}; {origin['test_images']:,} test {origin.get('unit', 'image')}s of {origin['data']}{commit}"


def _footnotes(comparison: Mapping[str, Any]) -> list[str]:
    """Return explanations of the words that occur in the tables."""
    if "rows" not in comparison:
        sides = [row[side] for row in comparison["latency"] for side in "ab" if row[side]]
        return [_NOISY] if any(map(is_noisy, sides)) else []
    rows = comparison["rows"]
    lines = ["p50: the CPU at batch 1 with one thread"] if any(row["p50_ms"] for row in rows) else []
    lines += [_RULE] if any(row["dominated_by"] for row in rows) else []
    return lines + ([_NOISY] if any(map(is_noisy, rows)) else [])


def _value_table(comparison: Mapping[str, Any]) -> _Table:
    gate = comparison["gate"]
    cells = [
        ["", "A", "B", "B - A", "95 % of B - A"],
        ["gate", gate["a"], gate["b"], "same" if gate["a"] == gate["b"] else "changed", ""],
    ]
    for row in comparison["values"]:
        if row["a"] is None and row["b"] is None:
            continue
        form, signed = ("{:,.0f}", "{:+,.0f}") if row["unit"] == "bytes" else ("{:.2f}", "{:+.2f}")
        low_high = row.get("difference_ci95")
        interval = f"{low_high[0]:+.2f} to {low_high[1]:+.2f}" if low_high else ""
        values = [_text(row["a"], form), _text(row["b"], form), _text(row["difference"], signed)]
        cells.append([f"{row['name']}, {row['unit']}", *values, interval])
    return _Table(cells, {0})


def _latency_table(comparison: Mapping[str, Any]) -> _Table:
    cells = [["p50 in ms", "model", "batch", "threads", "A", "B", "B / A", "trust A", "trust B"]]
    for row in comparison["latency"]:
        sides = [row["a"], row["b"]]
        case = [short_provider(row["provider"]), row["model"], f"{row['batch']}", f"{row['threads']}"]
        times = [_text(side and side["p50_ms"], "{:.3f}") for side in sides]
        words = [stability_word(side["trust"]) if side else "–" for side in sides]
        cells.append([*case, *times, _text(row["ratio"], "{:.3f}×"), *words])
    return _Table(cells, {0, 1, 7, 8})


def _run_table(table: Mapping[str, Any]) -> _Table:
    cells = [["run", "student", "M param.", "MMAC", "inputs", "epochs", "method", "loss pp", "gate"]]
    int8 = {row["run"]: row for row in table["rows"] if row["model"] == "int8"}
    for run in table["reports"]:
        row = int8[run]
        counts = [_text(row[key] and row[key] / 1e6, form) for key, form in (("params", "{:.2f}"), ("macs", "{:.0f}"))]
        training = [_text(row["train_images"], "{:,}"), _text(row["epochs"], "{}"), row["method"] or "–"]
        cells.append([run, row["student"] or "–", *counts, *training, _text(row["loss_pp"], "{:+.2f}"), row["gate"]])
    return _Table(cells, {0, 1, 6, 8})


def _model_table(table: Mapping[str, Any]) -> _Table:
    cells = [["run", "student", "model", "top-1 %", "95 %", "MB", "p50 ms", "trust", "beaten by"]]
    for row in table["rows"]:
        (low, high), by = row["ci95_pct"], row["dominated_by"]
        cells.append(
            [
                row["run"],
                row["student"] or "–",
                row["model"].upper(),
                f"{row['top1_pct']:.2f}",
                f"{low:.2f}–{high:.2f}",
                f"{row['size_bytes'] / 1e6:.2f}",
                _text(row["p50_ms"], "{:.3f}" if (row["p50_ms"] or 0) < 10 else "{:.1f}"),
                stability_word(row["trust"]) if row["trust"] else "–",
                f"{by['run']} {by['model'].upper()}" if by else "",
            ]
        )
    return _Table(cells, {0, 1, 2, 7, 8}, [bool(row["dominated_by"]) for row in table["rows"]])


def _wide_table(table: Mapping[str, Any]) -> _Table:
    """Return the tables of runs and models in one."""
    of_run = {row[0]: row[2:7] for row in _run_table(table).cells}
    gates = [["loss pp", "gate"], *([_text(row["loss_pp"], "{:+.2f}"), row["gate"] or "–"] for row in table["rows"])]
    models = _model_table(table).cells
    cells = [[*row[:3], *of_run[row[0]], *row[3:5], *gate, *row[5:]] for row, gate in zip(models, gates, strict=True)]
    return _Table(cells, set(range(len(cells[0]))))


def _text(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
