"""Several runs in one table and one picture, accuracy against latency: which student to ship.

    kdedge report artifacts/lite artifacts/lite-s artifacts/lite-xs --figure students.png

`tabulate` gives plain data, a row for the FP32 and the INT8 model of every run, and marks what is dominated: another
row is at least as accurate and at least as fast. Accuracies of other test images are refused; latencies of other hosts
are left out. Needs no onnxruntime; only the picture needs matplotlib.
"""

import importlib.util
import itertools
import string
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.benchmarks.report.compare import (
    OTHER_HOSTS,
    comparison_notes,
    describe_origin,
    origin,
    same_host,
    same_test_images,
)
from kdedge.benchmarks.report.figures import CREATOR, render
from kdedge.benchmarks.report.pareto_figure import PICTURE_SIZE, host_name, is_noisy, paint_picture
from kdedge.benchmarks.stability import trust_word
from kdedge.errors import InputError
from kdedge.files import disk_errors, write_atomic
from kdedge.ownership import holds_nothing, not_ours

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "check_same_host",
    "check_same_test_images",
    "draw_picture",
    "print_table",
    "run_name",
    "table_markdown",
    "tabulate",
]

_LEFT_OUT = "other hosts: all latencies are left out, and with them what dominates what"
_CASE = {"provider": "CPUExecutionProvider", "batch": 1, "threads": 1}
_RULE = "beaten by (dominated): that row is at least as accurate and at least as fast"


def tabulate(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Put reports into one table.

    Args:
        reports: Two or more; see `kdedge.benchmarks.report.file.load_report`.
        names: What to call them, usually their paths.

    Returns:
        ``reports`` (name, host and origin by the letter of the run), ``notes`` (what limits the comparison) and
        ``rows``, the fastest first, or the most accurate where no latency is known: ``run`` (its letter), ``label``
        (its student, and where another has the same also the name of the run, or its letter), ``student``, ``params``,
        ``macs``, ``train_images``, ``epochs``, ``method``, ``model`` (fp32 or int8), ``top1_pct``, ``ci95_pct``,
        ``loss_pp`` and ``gate`` (of int8), ``size_bytes``, ``p50_ms`` and ``trust`` (CPU, batch 1, one thread) and
        ``dominated_by`` (``run`` and ``model`` of the fastest row that is at least as accurate and at least as fast,
        and not equal in both; null: none). What is unknown is null.

    Raises:
        InputError: A report is named twice, or they are of different test images.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{name} is named twice", "name every report once")
    check_same_test_images(reports, names)
    one_host = all(same_host(reports[0], other) for other in reports[1:])
    notes = [note for other in reports[1:] for note in comparison_notes(reports[0], other)]
    runs = [_letter(index) for index in range(len(reports))]
    rows = [
        row
        for run, label, report in zip(runs, _labels(reports, names), reports, strict=True)
        for row in _rows(run, label, report, timed=one_host)
    ]
    if one_host and (untimed := [f"{row['run']} {row['model'].upper()}" for row in rows if row["p50_ms"] is None]):
        notes.append(f"no latency on the CPU at batch 1 with one thread: {', '.join(untimed)}")
    rows.sort(key=lambda row: (row["p50_ms"] is None, row["p50_ms"] or 0, -row["top1_pct"]))
    for row in rows:
        row["dominated_by"] = next(
            ({key: other[key] for key in ("run", "model")} for other in rows if _dominates(other, row)), None
        )
    return {
        "reports": {run: origin(report, name) for run, report, name in zip(runs, reports, names, strict=True)},
        "notes": list(dict.fromkeys(_LEFT_OUT if note == OTHER_HOSTS else note for note in notes)),
        "rows": rows,
    }


def check_same_test_images(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Refuse to put accuracies of different test images side by side.

    Args:
        reports: Reports, or what stands in for one: ``run`` with ``data``, and ``accuracy`` with ``n``
            (None in all: not yet known) and ``images_sha256`` (which decides where it is known).
        names: What to call them.

    Raises:
        InputError: They are of different test images, or not of those that their bundle was judged on.
    """
    if not all(same_test_images(a, b) for a, b in itertools.combinations(reports, 2)):
        raise InputError(
            "accuracies on different test images cannot be put side by side: "
            + "; ".join(f"{name}: {_test_images(report)}" for name, report in zip(names, reports, strict=True)),
            "measure all on the same images (`kdedge benchmark BUNDLE --data DATA`), or leave out what differs",
        )


def check_same_host(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Refuse a picture of latencies of different hosts.

    Args:
        reports: Reports, or what stands in for one: ``host``.
        names: What to call them.

    Raises:
        InputError: They were measured on different hosts.
    """
    if not all(same_host(reports[0], other) for other in reports[1:]):
        raise InputError(
            "latencies of different hosts cannot be put into one picture: "
            + "; ".join(f"{name}: {host_name(report['host'])}" for name, report in zip(names, reports, strict=True)),
            "measure all on one host: `kdedge benchmark BUNDLE --out DIRECTORY`",
        )


def print_table(table: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print what `tabulate` returned in 80 columns.

    Args:
        table: From `tabulate`.
        console: Where to print; by default standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(width=80, highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    above = ""
    for run, report in table["reports"].items():
        name, origin_text = describe_origin(report)
        facts.add_row(run, Text(name, overflow="fold"))
        if origin_text != above:
            facts.add_row("", Text(origin_text, overflow="fold"))
        above = origin_text
    console.print(facts)
    for note in table["notes"]:
        console.print(Text(f"mind: {note}", style="bold yellow"))
    runs, rows = _run_cells(table), _row_cells(table)
    for cells, text_columns in ((runs, {0, 1, 6, 8}), (rows, {0, 1, 2, 7, 8})):
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for index, title in enumerate(cells[0]):
            grid.add_column(title, justify="left" if index in text_columns else "right", overflow="fold")
        models = table["rows"] if cells is rows else [{"trust": None, "dominated_by": None}] * len(table["reports"])
        for row, model in zip(cells[1:], models, strict=True):
            texts = [Text(cell) for cell in row]
            if is_noisy(model):
                texts[_TRUST].stylize("yellow")
            grid.add_row(*texts, style="dim" if model["dominated_by"] else None)
        console.print()
        console.print(grid)
    for line in _footnotes(table):
        console.print(line)


def table_markdown(table: Mapping[str, Any]) -> str:
    """Return what `tabulate` returned as Markdown, for a pull request."""
    lines = []
    for run, report in table["reports"].items():
        name, facts = describe_origin(report)
        lines.append(f"- **{run}**: {name}: {facts}")
    lines += [f"- **Mind:** {note}" for note in table["notes"]]
    of_run = {row[0]: row[2:7] for row in _run_cells(table)}
    cells = []
    for row, known in zip(_row_cells(table), [None, *table["rows"]], strict=True):
        judged = ["loss pp", "gate"] if known is None else [_text(known["loss_pp"], "{:+.2f}"), known["gate"] or "–"]
        cells.append([*row[:3], *of_run[row[0]], *row[3:5], *judged, *row[5:]])
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines += ["", *(f"| {' | '.join(row)} |" for row in escaped)]
    lines.insert(-len(cells) + 1, "|" + "---|" * len(cells[0]))
    return "\n".join([*lines, "", *_footnotes(table)]) + "\n"


def draw_picture(table: Mapping[str, Any], file: Path) -> None:
    """Draw what `tabulate` returned, accuracy against latency.

    Args:
        table: From `tabulate`, of reports of one host.
        file: A ``.png`` or ``.svg`` file.

    Raises:
        InputError: The name ends otherwise, there is no latency to draw, or matplotlib is missing.
        StageError: The file cannot be written.
    """
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"cannot draw {file}: it ends neither with .png nor .svg", "for example --figure students.png")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a figure needs matplotlib, which is not installed", "pip install matplotlib")
    if all(row["p50_ms"] is None for row in table["rows"]):
        raise InputError(
            "no report has a latency on the CPU at batch 1 with one thread, so there is nothing to draw",
            "measure it: `kdedge benchmark --latency-batches 1 --latency-threads 1 --out RUN`",
        )
    if not holds_nothing(file) and not (file.is_file() and CREATOR.encode() in file.read_bytes()):
        raise not_ours(file, "it is not one of its figures", flag="--figure")
    content = render(partial(paint_picture, table=table), PICTURE_SIZE, kind=kind)
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)


def _rows(run: str, label: str, report: Mapping[str, Any], *, timed: bool) -> list[dict[str, Any]]:
    """Return the rows of one report, without what only a comparison knows."""
    student, accuracy, gate = report["student"], report["accuracy"], report["gate"]
    rows = []
    for model in ("fp32", "int8"):
        case = {**_CASE, "model": model}
        found = [row for row in report["latency"] if timed and all(row[key] == case[key] for key in case)]
        time = found[0] if found else None
        rows.append(
            {
                "run": run,
                "label": label,
                "student": student["arch"],
                **{key: student.get(key) for key in ("params", "macs", "train_images", "epochs", "method")},
                "model": model,
                "top1_pct": accuracy[f"onnx_{model}_top1_pct"],
                "ci95_pct": accuracy[f"onnx_{model}_ci95_pct"],
                "loss_pp": gate["loss_pp"] if model == "int8" else None,
                "gate": gate["verdict"] if model == "int8" else None,
                "size_bytes": report["size"][f"{model}_bytes"],
                "p50_ms": time and time["p50_ms"],
                "trust": time and time["trust"]["verdict"],
            }
        )
    return rows


def _dominates(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether a row is at least as accurate and at least as fast as another, and not equal in both."""
    if other["p50_ms"] is None or row["p50_ms"] is None:
        return False
    ours, theirs = (other["p50_ms"], -other["top1_pct"]), (row["p50_ms"], -row["top1_pct"])
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def _labels(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Name each run by its student, and by its directory too where that is not enough."""
    students = [str(report["student"]["arch"] or "student") for report in reports]
    places = [run_name(name) for name in names]
    if len(set(places)) < len(places):
        places = [_letter(index) for index in range(len(names))]
    return [
        student if students.count(student) == 1 else f"{student} ({place})"
        for student, place in zip(students, places, strict=True)
    ]


def run_name(name: str) -> str:
    """Return the name of the run directory that a path to a report, a benchmark or a bundle lies in."""
    path = Path(name).resolve()
    while path.name in ("report.json", "benchmark", "bundle"):
        path = path.parent
    return path.name


def _letter(index: int) -> str:
    """Return A to Z, then A1 to Z1 and so on."""
    letters = string.ascii_uppercase
    return f"{letters[index % len(letters)]}{index // len(letters) or ''}"


def _run_cells(table: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of the runs with its heading, as text."""
    cells = [["run", "student", "M param.", "MMAC", "images", "epochs", "method", "loss pp", "gate"]]
    judged = {row["run"]: row for row in table["rows"] if row["model"] == "int8"}
    for run in table["reports"]:
        row = judged[run]
        counts = [_text(row[key] and row[key] / 1e6, form) for key, form in (("params", "{:.2f}"), ("macs", "{:.0f}"))]
        training = [_text(row["train_images"], "{:,}"), _text(row["epochs"], "{}"), row["method"] or "–"]
        cells.append([run, row["student"] or "–", *counts, *training, _text(row["loss_pp"], "{:+.2f}"), row["gate"]])
    return cells


_TRUST = 7  # the column of `_row_cells`


def _row_cells(table: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of the models with its heading, as text."""
    cells = [["run", "student", "model", "top-1 %", "95 %", "MB", "p50 ms", "trust", "beaten by"]]
    for row in table["rows"]:
        low, high = row["ci95_pct"]
        by = row["dominated_by"]
        cells.append(
            [
                row["run"],
                row["student"] or "–",
                row["model"].upper(),
                f"{row['top1_pct']:.2f}",
                f"{low:.2f}–{high:.2f}",
                f"{row['size_bytes'] / 1e6:.2f}",
                _text(row["p50_ms"], "{:.3f}" if (row["p50_ms"] or 0) < 10 else "{:.1f}"),
                trust_word(row["trust"]) if row["trust"] else "–",
                f"{by['run']} {by['model'].upper()}" if by else "",
            ]
        )
    return cells


def _footnotes(table: Mapping[str, Any]) -> list[str]:
    """Return what explains the words of the table, as far as they occur in it."""
    lines = ["p50: the CPU at batch 1 with one thread"] if any(row["p50_ms"] for row in table["rows"]) else []
    lines += [_RULE] if any(row["dominated_by"] for row in table["rows"]) else []
    return lines + (["noisy: do not quote"] if any(map(is_noisy, table["rows"])) else [])


def _test_images(report: Mapping[str, Any]) -> str:
    other = ", not those of its bundle" if report["run"].get("same_test_images") is False else ""
    count, sha256 = report["accuracy"]["n"], report["accuracy"].get("images_sha256")
    known = f" ({sha256[:8]})" if sha256 else ""
    return f"{'' if count is None else f'{count:,} of '}{report['run']['data']}{known}{other}"


def _text(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
