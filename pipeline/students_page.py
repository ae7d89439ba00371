"""The comparison of several students as CSV, as a page and in a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdedge.files import csv_bytes, write_atomic
from kdedge.templates import load_template, picture_url

__all__ = ["CSV", "FIGURE", "HTML", "JSON", "begins_csv", "print_students", "write_csv", "write_page"]

CSV = "students.csv"
JSON = "students.json"
HTML = "students.html"
FIGURE = "students.png"

_COLUMNS = (
    "student", "status", "error", "params", "macs", "val_images", "fp32_val_top1_pct", "int8_val_pct",
    "test_images", "fp32_test_top1_pct", "int8_test_top1_pct", "loss_pp", "gate", "fp32_bytes", "int8_bytes",
    "int8_p50_ms", "latency",
)  # fmt: skip
_TITLES = ("INT8 val %", "FP32 test %", "INT8 test %", "gate", "MMAC", "INT8 kB", "INT8 ms")
_NOTE = "Test accuracy and gate do not affect the choice. Latency: CPU, batch 1, one thread; in parentheses if noisy."


def begins_csv(path: Path) -> bool:
    """Return whether a file is the CSV of a comparison."""
    return path.is_file() and path.read_bytes().startswith(",".join(_COLUMNS[:3]).encode())


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one line per student."""
    write_atomic(path, csv_bytes(_COLUMNS, rows))


def write_page(result: Mapping[str, Any], out: Path) -> None:
    """Write ``students.html``, with the figure inside if there is one."""
    rows = [
        {
            "student": row["student"],
            "error": row["error"],
            "cells": _cells(row),
            "chosen": row["student"] == result["chosen"],
            "link": f"students/{row['student']}/benchmark/report.html" if row["status"] == "done" else "",
        }
        for row in result["students"]
    ]
    figure = out / FIGURE
    image = picture_url(figure.read_bytes()) if figure.exists() else ""
    page = load_template(Path(__file__).parent / "templates" / f"{HTML}.j2").render(
        titles=_TITLES, rows=rows, reason=_reason(result), note=_NOTE, figure=image
    )
    write_atomic(out / HTML, page.encode(errors="replace"))


def print_students(result: Mapping[str, Any]) -> None:
    """Print the comparison in 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for title in ("student", *_TITLES):
        is_text = title in ("student", "gate")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=is_text)
    for row in result["students"]:
        table.add_row(row["student"], *_cells(row), style="bold" if row["student"] == result["chosen"] else None)
    console = Console(width=80, highlight=False)
    console.print(table)
    console.print(_reason(result), markup=False)
    console.print(_NOTE, markup=False)


def _reason(result: Mapping[str, Any]) -> str:
    """Return a sentence with the chosen student and the rule."""
    done = {row["student"]: row for row in result["students"] if row["status"] == "done"}
    chosen = done[result["chosen"]]
    best = max(done.values(), key=lambda row: float(row["int8_val_pct"]))
    below = best["int8_val_pct"] - chosen["int8_val_pct"]
    distance = f"is {below:.2f} pp below that of {best['student']}" if below else "is the highest"
    return (
        f"{result['chosen']} is chosen: it has the fewest multiply-accumulates within {result['tolerance_pp']:g} pp of "
        f"the best. Its INT8 accuracy on {chosen['val_images']:,} validation inputs {distance}."
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["status"] != "done":
        return [row["status"], *[""] * (len(_TITLES) - 1)]
    latency = "–" if row["int8_p50_ms"] is None else f"{row['int8_p50_ms']:.3f}"
    return [
        f"{row['int8_val_pct']:.2f}",
        f"{row['fp32_test_top1_pct']:.2f}",
        f"{row['int8_test_top1_pct']:.2f}",
        row["gate"],
        f"{row['macs'] / 1e6:.1f}",
        f"{row['int8_bytes'] / 1e3:,.0f}",
        f"({latency})" if row["latency"] == "noisy" else latency,
    ]
