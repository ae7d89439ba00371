"""Compare reports: differences between two, or a table of several with the dominated models marked.

    kdedge report artifacts/reference artifacts/benchmark        # a table; --markdown, or --json for scripts
    kdedge report artifacts/lite artifacts/lite-s artifacts/lite-xs --figure students.png
    kdedge benchmark --out artifacts/lite --compare-with artifacts/lite-s,artifacts/lite-xs

Every function returns plain data or raises an error; `kdedge.benchmarks.report.compare_text` prints it and
`kdedge.benchmarks.report.figures.draw_comparison` draws it. Needs no onnxruntime.
"""

import itertools
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdedge.benchmarks.report.details import unit
from kdedge.benchmarks.report.file import find_report, load_report
from kdedge.benchmarks.stability import STEADY
from kdedge.errors import InputError
from kdedge.files import file_sha256
from kdedge.parsing import parse_paths
from kdedge.preprocessing import RESIZE_MODES

__all__ = [
    "check_comparable",
    "check_same_host",
    "compare_reports",
    "comparison_table",
    "host_name",
    "is_noisy",
    "load_others",
    "others_sha256",
    "same_test_images",
    "tabulate",
]

Report = Mapping[str, Any]
Row = dict[str, Any]

_FLAG = "--compare-with"
_THIS = "this run"
_OTHER_HOSTS = "other hosts: the latencies compare the hosts and the models together"
_LEFT_OUT = "other hosts: latencies and domination are left out"
_CASE = ("provider", "model", "batch", "threads")
_TABLE_CASE = {"provider": "CPUExecutionProvider", "batch": 1, "threads": 1}
_IMAGE_FORM = {"image_size": None, "resize_mode": RESIZE_MODES[0], "color": None}
_TIMES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "throughput_ips")
_VALUES = (
    ("INT8 top-1", "%", "accuracy", "onnx_int8_top1_pct"),
    ("FP32 top-1", "%", "accuracy", "onnx_fp32_top1_pct"),
    ("teacher top-1", "%", "teacher", "test_top1_pct"),
    ("loss by INT8", "pp", "gate", "loss_pp"),
    ("loss by INT8, at most", "pp", "gate", "loss_upper95_pp"),
    ("INT8 file", "bytes", "size", "int8_bytes"),
    ("FP32 file", "bytes", "size", "fp32_bytes"),
)


def compare_reports(a: Report, b: Report, names: Sequence[str]) -> dict[str, Any]:
    """Compare two reports.

    Args:
        a: The baseline; see `kdedge.benchmarks.report.file.load_report`.
        b: The other report.
        names: Their names, usually their paths.

    Returns:
        ``a`` and ``b`` (name, host and origin of each), ``notes`` (limits of the comparison), ``values`` (rows of
        ``name``, ``unit``, ``a``, ``b`` and ``difference``, B minus A; accuracies with ``difference_ci95``), ``gate``
        (both verdicts) and ``latency`` (rows of provider, model, batch, threads, the times and stability verdicts
        (``trust``) of both, and ``ratio``, p50 of B over that of A; a case of only one report is null in the other).
    """
    values = []
    for name, scale, section, key in _VALUES:
        row = _value_row(name, scale, a[section][key], b[section][key])
        if section == "accuracy":
            row["difference_ci95"] = _difference_ci95(a, b, key)
        values.append(row)
    return {
        "a": _origin(a, names[0]),
        "b": _origin(b, names[1]),
        "notes": _notes(a, b),
        "gate": {"a": a["gate"]["verdict"], "b": b["gate"]["verdict"]},
        "values": values + _portability_rows(a, b),
        "latency": _latency(a["latency"], b["latency"]),
    }


def tabulate(reports: Sequence[Report], names: Sequence[str]) -> dict[str, Any]:
    """Put two or more reports into one table.

    Args:
        reports: See `kdedge.benchmarks.report.file.load_report`.
        names: Their names, usually their paths.

    Returns:
        ``reports`` (name, host and origin by the letter of the run), ``notes`` (limits of the comparison) and ``rows``
        for the FP32 and the INT8 model of every run, the fastest first, then those without a latency, the most
        accurate first: ``run`` (its letter), ``label`` (its student; if several runs have the same one, also the name
        of the run or its letter), ``student``, ``params``, ``macs``, ``train_images``, ``epochs``, ``method``,
        ``model`` (fp32 or int8), ``top1_pct``, ``ci95_pct``, ``loss_pp`` and ``gate`` (int8 only), ``size_bytes``,
        ``p50_ms`` and ``trust`` (its stability; CPU, batch 1, one thread) and ``dominated_by`` (``run`` and ``model``
        of the fastest row that is at least as accurate and at least as fast, and better in one of them). Unknown
        values are null. Reports of different hosts have no latencies.

    Raises:
        InputError: A report is named twice, or the reports are of different test images.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{name} is named twice", "name every report once")
    _check_same_test_images(reports, names)
    one_host = all(_same_host(reports[0], other) for other in reports[1:])
    notes = [note for other in reports[1:] for note in _notes(reports[0], other)]
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
        "reports": {run: _origin(report, name) for run, report, name in zip(runs, reports, names, strict=True)},
        "notes": list(dict.fromkeys(_LEFT_OUT if note == _OTHER_HOSTS else note for note in notes)),
        "rows": rows,
    }


def load_others(text: str) -> dict[str, dict[str, Any]]:
    """Return the reports that ``--compare-with`` names, by their paths.

    Raises:
        InputError: A report is missing or invalid.
    """
    return {str(path): load_report(path) for path in parse_paths(text, _FLAG)}


def others_sha256(text: str) -> list[str]:
    """Return the SHA-256 of every report that ``--compare-with`` names.

    Raises:
        InputError: A report is missing.
    """
    return [file_sha256(find_report(path)) for path in parse_paths(text, _FLAG)]


def check_comparable(others: Mapping[str, Report], host: Report, data: str, images: Report) -> None:
    """Check that reports can be compared with the run that is about to be measured.

    Args:
        others: From `load_others`.
        host: From `kdedge.benchmarks.host.host_record`.
        data: Name of the data set.
        images: ``images_sha256`` of its test inputs, the record of their input, and ``n`` once it is known.

    Raises:
        InputError: A report is of another host or of other test images.
    """
    if not others:
        return
    reports = [{"run": {"data": data}, "accuracy": images, "host": host}, *others.values()]
    if "n" not in images:
        reports = [{**report, "accuracy": {**report["accuracy"], "n": None}} for report in reports]
    try:
        _check_same_test_images(reports, [_THIS, *others])
        check_same_host(reports, [_THIS, *others])
    except InputError as error:
        error.args = (f"{_FLAG}: {error}",)
        raise


def comparison_table(report: Report, others: Mapping[str, Report]) -> dict[str, Any] | None:
    """Return the table of a report and others as `tabulate` does, without paths of this machine; None if no others."""
    if not others:
        return None
    table = tabulate([report, *others.values()], [_THIS, *others])
    for row in table["rows"]:
        if row["run"] == "A":
            row["label"] = f"{row['student'] or 'student'} ({_THIS})"
    for origin in table["reports"].values():
        origin["report"] = _run_name(origin["report"])
    return table


def check_same_host(reports: Sequence[Report], names: Sequence[str]) -> None:
    """Check that reports were measured on one host.

    Args:
        reports: Mappings with the section ``host``.
        names: Their names.

    Raises:
        InputError: They were measured on different hosts.
    """
    if not all(_same_host(reports[0], other) for other in reports[1:]):
        raise InputError(
            "latencies of different hosts cannot be put into one picture: "
            + "; ".join(f"{name}: {host_name(report['host'])}" for name, report in zip(names, reports, strict=True)),
            "measure all on one host: `kdedge benchmark BUNDLE --out DIRECTORY`",
        )


def same_test_images(a: Report, b: Report) -> bool:
    """Return whether the accuracies of two reports are of the same test images, as far as the reports record it."""
    hashes = [report["accuracy"].get("images_sha256") for report in (a, b)]
    # The hash is of the resized images in the color of the run. Older reports have none, or no resize mode.
    forms = [[report["accuracy"].get(key, default) for key, default in _IMAGE_FORM.items()] for report in (a, b)]
    if all(hashes) and forms[0] == forms[1]:
        same = hashes[0] == hashes[1]
    else:
        same = all(a[part][key] == b[part][key] for part, key in (("run", "data"), ("accuracy", "n")))
    return same and all(report["run"].get("same_test_images") is not False for report in (a, b))


def is_noisy(row: Report) -> bool:
    """Return whether a row of `tabulate` has a latency that must not be quoted."""
    return row["trust"] is not None and row["trust"] != STEADY


def host_name(host: Report) -> str:
    """Return board or CPU, cores and GPU of a host."""
    cores = f"{host['cores']} core{'s' * (host['cores'] != 1)}"
    return ", ".join(filter(None, [host.get("board") or host["cpu"], cores, host.get("gpu")]))


def _origin(report: Report, name: str) -> Row:
    host, run = report["host"], report["run"]
    return {
        "report": name,
        "data": run["data"],
        "test_images": report["accuracy"]["n"],
        "unit": unit(report),
        "student": report["student"]["arch"],
        "commit": run.get("commit"),
        "host": {key: host.get(key) for key in ("cpu", "board", "cores", "os", "gpu", "onnxruntime")},
    }


def _same_host(a: Report, b: Report) -> bool:
    return all(a["host"].get(key) == b["host"].get(key) for key in ("cpu", "board", "cores", "gpu"))


def _check_same_test_images(reports: Sequence[Report], names: Sequence[str]) -> None:
    """Check ``run`` and ``accuracy`` of reports; an ``n`` of None in all of them is not known yet."""
    if not all(same_test_images(a, b) for a, b in itertools.combinations(reports, 2)):
        raise InputError(
            "accuracies on different test data cannot be put side by side: "
            + "; ".join(f"{name}: {_test_images(report)}" for name, report in zip(names, reports, strict=True)),
            "measure all on the same data (`kdedge benchmark BUNDLE --data DATA`), or leave out the other reports",
        )


def _test_images(report: Report) -> str:
    other = ", not those of its bundle" if report["run"].get("same_test_images") is False else ""
    count, sha256 = report["accuracy"]["n"], report["accuracy"].get("images_sha256")
    known = f" ({sha256[:8]})" if sha256 else ""
    return f"{'' if count is None else f'{count:,} of '}{report['run']['data']}{known}{other}"


def _notes(a: Report, b: Report) -> list[str]:
    """Return why numbers of two reports are not comparable."""
    notes = []
    if not _same_host(a, b):
        notes.append(_OTHER_HOSTS)
    elif a["host"]["onnxruntime"] != b["host"]["onnxruntime"]:
        notes.append("another onnxruntime: the latencies compare the versions and the models together")
    setups = [{key: (r.get("benchmark") or {}).get(key) or None for key in ("affinity", "spinning")} for r in (a, b)]
    if setups[0] != setups[1]:
        notes.append("other CPUs or spinning threads (--affinity, --latency-spinning): other setups are compared")
    if not same_test_images(a, b):
        notes.append("other test data: the accuracies are not of the same task")
    if a["gate"]["limit_pp"] != b["gate"]["limit_pp"]:
        notes.append(f"another limit of the gate: {a['gate']['limit_pp']:g} and {b['gate']['limit_pp']:g} pp")
    if len({report["gate"].get("metric", "top1") for report in (a, b)}) > 1:
        notes.append("another metric of the gate: one of the losses is of balanced accuracy")
    return notes


def _value_row(name: str, unit: str, a: float | None, b: float | None) -> Row:
    difference = None if a is None or b is None else round(b - a, 4)
    return {"name": name, "unit": unit, "a": a, "b": b, "difference": difference}


def _portability_rows(a: Report, b: Report) -> list[Row]:
    """Return for every CPU that either report emulated the share of predictions that differ from its host, in %."""
    shares = []
    for report in (a, b):
        emulated = (report.get("portability") or {}).get("emulated") or []
        shares.append({row["cpu"]: round(100 * row["flips"] / row["images"], 4) for row in emulated})
    cpus = dict.fromkeys((*shares[0], *shares[1]))
    return [_value_row(f"other predictions on {cpu}", "%", *(side.get(cpu) for side in shares)) for cpu in cpus]


def _difference_ci95(a: Report, b: Report, key: str) -> list[float]:
    """Return Newcombe's 95 % interval of the difference of two accuracies in pp, from the Wilson interval of each.

    Method 10 in Statistics in Medicine 17 (1998), 873-890. It assumes independent samples. Reports of the same images
    cannot be paired image by image; the interval is then wider than necessary.
    """
    (low_a, high_a), (low_b, high_b) = (report["accuracy"][key.replace("top1", "ci95")] for report in (a, b))
    top1_a, top1_b = a["accuracy"][key], b["accuracy"][key]
    difference = top1_b - top1_a
    below = math.hypot(top1_b - low_b, high_a - top1_a)
    above = math.hypot(high_b - top1_b, top1_a - low_a)
    return [round(difference - below, 4), round(difference + above, 4)]


def _latency(before: Sequence[Report], after: Sequence[Report]) -> list[Row]:
    """Return a row for every case of either report, those of A first."""
    cases = [{tuple(row[key] for key in _CASE): row for row in rows} for rows in (before, after)]
    rows = []
    for case in dict.fromkeys((*cases[0], *cases[1])):
        a, b = (side.get(case) for side in cases)
        ratio = round(b["p50_ms"] / a["p50_ms"], 4) if a and b else None
        rows.append({**dict(zip(_CASE, case, strict=True)), "a": _times(a), "b": _times(b), "ratio": ratio})
    return rows


def _times(row: Report | None) -> Row | None:
    return None if row is None else {**{key: row.get(key) for key in _TIMES}, "trust": row["trust"]["verdict"]}


def _rows(run: str, label: str, report: Report, *, timed: bool) -> list[Row]:
    """Return the rows of one report, without the domination."""
    student, accuracy, gate = report["student"], report["accuracy"], report["gate"]
    rows = []
    for model in ("fp32", "int8"):
        case = {**_TABLE_CASE, "model": model}
        time = next((row for row in report["latency"] if timed and case.items() <= row.items()), None)
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


def _dominates(other: Row, row: Row) -> bool:
    """Return whether a row is at least as accurate and at least as fast as another, and better in one of them."""
    if other["p50_ms"] is None or row["p50_ms"] is None:
        return False
    ours, theirs = (other["p50_ms"], -other["top1_pct"]), (row["p50_ms"], -row["top1_pct"])
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def _labels(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    """Name each run by its student, and by its directory too if several have the same student."""
    students = [str(report["student"]["arch"] or "student") for report in reports]
    runs = [_run_name(name) for name in names]
    if len(set(runs)) < len(runs):
        runs = [_letter(index) for index in range(len(names))]
    return [
        student if students.count(student) == 1 else f"{student} ({run})"
        for student, run in zip(students, runs, strict=True)
    ]


def _run_name(name: str) -> str:
    """Return the name of the run directory of a report, benchmark or bundle."""
    path = Path(name).resolve()
    while path.name in ("report.json", "benchmark", "bundle"):
        path = path.parent
    return path.name


def _letter(index: int) -> str:
    """Return A to Z, then A1 to Z1 and so on."""
    letters = string.ascii_uppercase
    return f"{letters[index % len(letters)]}{index // len(letters) or ''}"
