"""Compare two reports: what changed in accuracy, gate, size and latency, and may it be compared.

    kdedge report artifacts/reference artifacts/benchmark        # a table; --markdown, or --json for scripts

`kdedge.benchmarks.report.file` finds and reads reports. `compare_reports` gives plain data; the table and the Markdown
are made from that alone. Needs no onnxruntime. More than two: `kdedge.benchmarks.report.pareto`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdedge.benchmarks.stability import trust_word

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "OTHER_HOSTS",
    "compare_reports",
    "comparison_markdown",
    "comparison_notes",
    "describe_origin",
    "origin",
    "print_comparison",
    "same_host",
    "same_test_images",
]

OTHER_HOSTS = "other hosts: the latencies compare the hosts and the models together"
_CASE = ("provider", "model", "batch", "threads")
_TIMES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "throughput_ips")


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Compare two reports.

    Args:
        a: The report that is compared with; see `kdedge.benchmarks.report.file.load_report`.
        b: The other.
        names: What to call them, usually their paths.

    Returns:
        ``a`` and ``b`` (name, host and origin of each), ``notes`` (why numbers may not be comparable), ``values`` (rows
        of ``name``, ``unit``, ``a``, ``b`` and ``difference``, B minus A; accuracies with ``difference_ci95``),
        ``gate`` (both verdicts) and ``latency`` (rows of provider, model, batch, threads, the times of both, both
        trust verdicts and ``ratio``, p50 of B over that of A; a case that only one has is null in the other).
    """
    return {
        "a": origin(a, names[0]),
        "b": origin(b, names[1]),
        "notes": comparison_notes(a, b),
        "gate": {"a": a["gate"]["verdict"], "b": b["gate"]["verdict"]},
        "values": _values(a, b),
        "latency": _latency(a["latency"], b["latency"]),
    }


def print_comparison(comparison: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print a comparison in 80 columns.

    Args:
        comparison: From `compare_reports`.
        console: Where to print; by default standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(width=80, highlight=False)
    for key in ("a", "b"):
        facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for label, text in zip((key.upper(), ""), describe_origin(comparison[key]), strict=True):
            facts.add_row(label, Text(text, overflow="fold"))
        console.print(facts)
    for note in comparison["notes"]:
        console.print(Text(f"mind: {note}", style="yellow"))
    values, latency = _value_cells(comparison), _latency_cells(comparison)
    for rows, text_columns in ((values, {0}), (latency, {0, 1, 7, 8})):
        if len(rows) == 1:
            continue
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for index, title in enumerate(rows[0]):
            table.add_column(title, justify="left" if index in text_columns else "right", overflow="fold")
        for row in rows[1:]:
            table.add_row(*(Text(cell, style="yellow" if cell == "noisy" else "") for cell in row))
        console.print()
        console.print(table)
    if any("noisy" in row for row in latency):
        console.print("noisy: do not quote")


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown, for a pull request."""
    lines = []
    for key in ("a", "b"):
        name, facts = describe_origin(comparison[key])
        lines.append(f"- **{key.upper()}**: {name}: {facts}")
    lines += [f"- **Mind:** {note}" for note in comparison["notes"]]
    for rows in (_value_cells(comparison), _latency_cells(comparison)):
        if len(rows) == 1:
            continue
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines += ["", *(f"| {' | '.join(row)} |" for row in cells)]
        lines.insert(-len(cells) + 1, "|---|" + "---:|" * (len(cells[0]) - 1))
    if any("noisy" in row for row in _latency_cells(comparison)):
        lines += ["", "noisy: do not quote"]
    return "\n".join(lines) + "\n"


def origin(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a report is of: its name, data, student and host."""
    host, run = report["host"], report["run"]
    return {
        "report": name,
        "data": run["data"],
        "test_images": report["accuracy"]["n"],
        "student": report["student"]["arch"],
        "commit": run.get("commit"),
        "host": {key: host.get(key) for key in ("cpu", "board", "cores", "os", "gpu", "onnxruntime")},
    }


def same_host(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two reports were measured on hosts that nothing tells apart."""
    return all(a["host"].get(key) == b["host"].get(key) for key in ("cpu", "board", "cores", "gpu"))


def same_test_images(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether the accuracies of two reports are of the same task, as far as the reports know."""
    hashes, sizes = ([report["accuracy"].get(key) for report in (a, b)] for key in ("images_sha256", "image_size"))
    # The hash is of the images at the size in which a student sees them; older reports have none.
    if all(hashes) and sizes[0] == sizes[1]:
        same = hashes[0] == hashes[1]
    else:
        same = all(a[part][key] == b[part][key] for part, key in (("run", "data"), ("accuracy", "n")))
    return same and all(report["run"].get("same_test_images") is not False for report in (a, b))


def comparison_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say what makes the numbers of two reports incomparable."""
    notes = []
    if not same_host(a, b):
        notes.append(OTHER_HOSTS)
    elif a["host"]["onnxruntime"] != b["host"]["onnxruntime"]:
        notes.append("another onnxruntime: the latencies compare the versions and the models together")
    setups = [{key: (r.get("benchmark") or {}).get(key) or None for key in ("affinity", "spinning")} for r in (a, b)]
    if setups[0] != setups[1]:
        notes.append("other CPUs or spinning threads (--affinity, --latency-spinning): other setups are compared")
    if not same_test_images(a, b):
        notes.append("other test images: the accuracies are not of the same task")
    if a["gate"]["limit_pp"] != b["gate"]["limit_pp"]:
        notes.append(f"another limit of the gate: {a['gate']['limit_pp']:g} and {b['gate']['limit_pp']:g} pp")
    return notes


def _values(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of everything but latency."""
    rows: list[dict[str, Any]] = []
    for name, unit, section, key in (
        ("INT8 top-1", "%", "accuracy", "onnx_int8_top1_pct"),
        ("FP32 top-1", "%", "accuracy", "onnx_fp32_top1_pct"),
        ("teacher top-1", "%", "teacher", "test_top1_pct"),
        ("loss by INT8", "pp", "gate", "loss_pp"),
        ("loss by INT8, at most", "pp", "gate", "loss_upper95_pp"),
        ("INT8 file", "bytes", "size", "int8_bytes"),
        ("FP32 file", "bytes", "size", "fp32_bytes"),
    ):
        before, after = a[section][key], b[section][key]
        known = before is not None and after is not None
        row = {
            "name": name,
            "unit": unit,
            "a": before,
            "b": after,
            "difference": round(after - before, 4) if known else None,
        }
        if section == "accuracy":
            row["difference_ci95"] = _difference_ci95(a, b, key)
        rows.append(row)
    return rows + _other_answers(a, b)


def _other_answers(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for every CPU that either report emulated: the share of answers that are not those of its host."""
    shares = []
    for report in (a, b):
        emulated = (report.get("portability") or {}).get("emulated") or []
        shares.append({row["cpu"]: round(100 * row["flips"] / row["images"], 4) for row in emulated})
    rows = []
    for cpu in dict.fromkeys((*shares[0], *shares[1])):
        before, after = (side.get(cpu) for side in shares)
        known = before is not None and after is not None
        difference = round(after - before, 4) if known else None  # type: ignore[operator]
        rows.append({"name": f"other answers on {cpu}", "unit": "%", "a": before, "b": after, "difference": difference})
    return rows


def _difference_ci95(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> list[float]:
    """Return Newcombe's 95 % interval of the difference of two accuracies in pp, from the Wilson interval of each.

    Method 10 in Statistics in Medicine 17 (1998), 873-890. It is for independent samples: of two models on the same
    images, which the reports cannot pair, the true interval is narrower.
    """
    (low_a, high_a), (low_b, high_b) = (report["accuracy"][key.replace("top1", "ci95")] for report in (a, b))
    share_a, share_b = a["accuracy"][key], b["accuracy"][key]
    difference = share_b - share_a
    below = math.hypot(share_b - low_b, high_a - share_a)
    above = math.hypot(high_b - share_b, share_a - low_a)
    return [round(difference - below, 4), round(difference + above, 4)]


def _latency(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every case of either report, those of A first."""
    cases = [{tuple(row[key] for key in _CASE): row for row in rows} for rows in (before, after)]
    rows = []
    for case in dict.fromkeys((*cases[0], *cases[1])):
        found = [side.get(case) for side in cases]
        both = found[0] and found[1]
        rows.append(
            {
                **dict(zip(_CASE, case, strict=True)),
                **{side: _times(row) for side, row in zip("ab", found, strict=True)},
                "ratio": round(found[1]["p50_ms"] / found[0]["p50_ms"], 4) if both else None,  # type: ignore[index]
            }
        )
    return rows


def _times(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {**{key: row.get(key) for key in _TIMES}, "trust": row["trust"]["verdict"]}


def describe_origin(origin: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of a report, and its host and origin in a line."""
    host = origin["host"]
    cores = f"{host['cores']} core{'s' * (host['cores'] != 1)}"
    parts = [host["board"] or host["cpu"], cores, host["gpu"], f"onnxruntime {host['onnxruntime']}"]
    made = [f"{origin['test_images']:,} test images of {origin['data']}"]
    made += [f"commit {origin['commit']}"] if origin["commit"] else []
    return origin["report"], ", ".join(filter(None, parts)) + "; " + ", ".join(made)


def _value_cells(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of the values with its heading, as text."""
    gate = comparison["gate"]
    rows = [
        ["", "A", "B", "B - A", "95 % of B - A"],
        ["gate", gate["a"], gate["b"], "same" if gate["a"] == gate["b"] else "changed", ""],
    ]
    for row in comparison["values"]:
        if row["a"] is None and row["b"] is None:
            continue
        form, signed = ("{:,.0f}", "{:+,.0f}") if row["unit"] == "bytes" else ("{:.2f}", "{:+.2f}")
        cells = [_text(row[side], form) for side in "ab"] + [_text(row["difference"], signed)]
        interval = row.get("difference_ci95")
        cells.append(f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "")
        rows.append([f"{row['name']}, {row['unit']}", *cells])
    return rows


def _latency_cells(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of the latencies with its heading, as text."""
    rows = [["p50 in ms", "model", "batch", "threads", "A", "B", "B / A", "trust A", "trust B"]]
    for row in comparison["latency"]:
        sides = [row["a"], row["b"]]
        times = [_text(side and side["p50_ms"], "{:.3f}") for side in sides]
        trust = [trust_word(side["trust"]) if side else "–" for side in sides]
        case = [row["provider"].removesuffix("ExecutionProvider"), row["model"], f"{row['batch']}", f"{row['threads']}"]
        rows.append([*case, *times, _text(row["ratio"], "{:.3f}×"), *trust])
    return rows


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
