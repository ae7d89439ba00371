"""The report for people: ``report.html`` (one file, no network), ``report.md``, and the summary on the console.

All three begin with the verdict and show the same numbers, each with its doubts. HTML and Markdown are templates in
``benchmarks/report/templates``; `kdedge.benchmarks.report.content` prepares their content.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.benchmarks.report.content import context
from kdedge.benchmarks.report.figures import Figure, draw_figures
from kdedge.files import write_atomic, write_json
from kdedge.templates import load_template, picture_url

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

__all__ = ["OTHER_FILES", "print_summary", "render_html", "render_markdown", "write_report"]

# The files of a benchmark next to report.json, which is written first.
OTHER_FILES = ("report.html", "report.md", "figures", "latency_samples.json")

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    report: Mapping[str, Any],
    out_dir: Path,
    mistakes: "npt.NDArray[np.uint8] | None" = None,
    examples: "Mapping[str, npt.NDArray[np.float32]] | None" = None,
) -> None:
    """Write ``report.json``, ``figures/*.png``, ``report.html`` and ``report.md``.

    Args:
        report: The content of ``report.json`` (see `kdedge.benchmarks.measure.run_benchmark`).
        out_dir: An existing directory.
        mistakes: The images of ``mistakes`` of the report, uint8 ``[N, S, S, 3]``; None: they are not drawn.
        examples: A normalised window of each class of a signal, ``[C, L]``; None: they are not drawn.
    """
    write_json(out_dir / "report.json", report)
    figures = draw_figures(report, out_dir / "figures", mistakes, examples)
    write_atomic(out_dir / "report.html", render_html(report, figures).encode(errors="replace"))
    write_atomic(out_dir / "report.md", render_markdown(report, figures).encode(errors="replace"))


def render_html(report: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Return the report as one HTML file with the figures inside."""
    embedded: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for figure in figures:
        embedded[figure.section].append(
            {
                "title": figure.title,
                "alt": figure.alt,
                "light": picture_url(figure.light),
                "dark": picture_url(figure.dark),
            }
        )
    return _render("report.html.j2", {**context(report), "figures": embedded})


def render_markdown(report: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Return the report as Markdown with links to ``figures/*.png``."""
    files = [{"title": figure.title, "alt": figure.alt, "file": f"figures/{figure.name}.png"} for figure in figures]
    return _render("report.md.j2", {**context(report), "figures": files})


def print_summary(report: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the result on one screen of 80 columns.

    Args:
        report: The content of ``report.json``.
        console: Default: standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(width=80, highlight=False)
    shown = context(report)
    style = {"passed": "bold green", "failed": "bold red"}.get(report["gate"]["verdict"], "bold yellow")
    console.print(Text(shown["headline"], style=style))
    console.print(shown["subject"], markup=False)
    console.print(report["gate"]["reason"], markup=False)
    for warning in shown["warnings"]:
        console.print(Text(warning, style="bold yellow"))
    console.print()
    metrics = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in shown["key_metrics"]:
        metrics.add_row(*map(Text, row))
    console.print(metrics)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in (
        "provider",
        "model",
        "batch",
        "threads",
        "p50 ms",
        "p90 ms",
        "img/s" if shown["unit"] == "image" else "windows/s",
        "trust",
    ):
        text = title in ("provider", "model", "trust")
        table.add_column(title, justify="left" if text else "right", no_wrap=True)
    for row in shown["latency"]:
        table.add_row(
            row["provider"], row["model"], str(row["batch"]), str(row["threads"]), row["p50"], row["p90"],
            row["throughput"], Text(row["trust"], style="" if row["steady"] else "yellow"),
        )  # fmt: skip
    console.print(table)
    for row in shown["runtimes"][2:]:  # the first two are onnxruntime on the CPU
        console.print(
            f"{row['provider']} {row['model']}: top-1 {row['top1']}, loss {row['own_loss']} pp against its FP32, "
            f"{row['changed']} predictions differ from onnxruntime's CPU",
            markup=False,
        )
    for reason in shown["doubts"]:
        console.print(f"noisy, do not quote: {reason}", markup=False)
    for missing in shown["unavailable"]:
        console.print(f"{missing['provider']} not measured: {missing['reason']}", markup=False)


def _render(template: str, shown: Mapping[str, Any]) -> str:
    return str(load_template(_TEMPLATES / template).render(shown))
