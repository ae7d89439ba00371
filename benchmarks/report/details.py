"""The details at the end of a report, as text: run, models, quantization, measurement and host."""

import re
from collections.abc import Mapping
from typing import Any

from kdedge.benchmarks.units import format_bytes, format_count
from kdedge.progress import format_duration

__all__ = ["c_memory", "detail_rows", "model_word", "quantization_sentence", "real_time", "starts_from", "unit"]

_HASH = re.compile(r"[0-9a-f]{64}")


def starts_from(student: Mapping[str, Any]) -> str:
    """Return the initial weights of a student by the first digits of their SHA-256; empty: none, or unknown."""
    hashes = student.get("weights_sha256") or []
    students = "a student" if len(hashes) == 1 else f"mean of {len(hashes)} students"
    if pruned := student.get("pruned"):
        before, after = ("-".join(map(str, pruned[key])) for key in ("from", "widths"))
        if pruned["by"] == "scratch":
            return f"untrained weights, with the channels {after} to which {before} of {students} would be pruned"
        students = f"channels {after}, pruned by {pruned['by']} from {before} of {students}"
    return f"{students} ({', '.join(sha256[:8] for sha256 in hashes)})" if hashes else ""


def real_time(report: Mapping[str, Any]) -> str:
    """Return how long INT8 takes for a window of a signal, relative to its duration; empty: an image, or unknown."""
    spec = report["accuracy"].get("input")
    rows = [row for row in report["latency"] if row["model"] == "int8" and row["batch"] == 1]
    if not spec or not spec["rate_hz"] or not rows:
        return ""
    window_s, p50_ms = spec["window"] / spec["rate_hz"], rows[0]["p50_ms"]
    return (
        f"INT8 takes {1000 * p50_ms:.0f} µs for a window of {window_s:.3g} s (real-time factor "
        f"{p50_ms / 1000 / window_s:.2g})"
    )


def c_memory(report: Mapping[str, Any]) -> str:
    """Return flash and RAM of the INT8 model as C code; empty: there is no C code of it, or unknown."""
    if not (sizes := report.get("c")):
        return ""
    flash, ram = sizes["constant_bytes"] + sizes["table_bytes"], sizes["buffer_bytes"] + sizes["input_bytes"]
    return f"flash {flash:,} bytes and about 1 kB of code, RAM {ram:,} bytes and the stack"


def quantization_sentence(record: Mapping[str, Any] | None, word: str = "image") -> str:
    """Return the choice of the search and the repair steps, with their numbers; empty: unknown."""
    if not record or not record.get("rungs"):
        return ""
    first, last = record["rungs"][0], record["rungs"][-1]
    text = f"The search chose {record['chosen']} for the target {record['target']}: {_rung(first)}"
    if last["rung"] != first["rung"]:
        text += f". The shipped model is after {last['rung']}: {_rung(last)}"
    for rung in record["rungs"]:
        if rung["rung"] not in (first["rung"], last["rung"]) and not rung.get("refused"):
            text += f". Tried and not kept: {rung['rung']}: {_rung(rung)}"
    return f"{text} (on {record['scored_images']:,} validation {word}s, against FP32)"


def unit(report: Mapping[str, Any]) -> str:
    """Return the word for one input: image or window."""
    return "window" if report.get("accuracy", {}).get("input") else "image"


def model_word(report: Mapping[str, Any]) -> str:
    """Return the word for the measured network: a student, or a model that kdedge did not train."""
    return "model" if report["student"].get("adopted") else "student"


def _input(report: Mapping[str, Any]) -> str | None:
    spec = report["accuracy"].get("input")
    if not spec:
        return None
    rate = f" at {spec['rate_hz']:g} Hz" if spec["rate_hz"] else ""
    return f"{spec['window']} samples{rate} of {', '.join(spec['channels'])}"


def _rung(rung: Mapping[str, Any]) -> str:
    return (
        f"loss {rung['loss_pp']:+.2f} pp (95 %: {rung['loss_lower95_pp']:+.2f} to {rung['loss_upper95_pp']:+.2f}), "
        f"SQNR of the logits {rung['sqnr_db']:.1f} dB"
    )


def _measurement_rows(report: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Return how latencies were measured; older reports lack it."""
    settings = report.get("benchmark") or {}
    windows = sorted({len(row["window_p50_ms"]) for row in report["latency"] if row.get("window_p50_ms")})
    split = f", in {windows[-1]} windows" if windows else ""
    cores = sorted({row["cores"] for row in report["latency"] if row.get("cores")})
    return [
        ("time for each latency", f"{settings['seconds']:g} s{split}" if settings.get("seconds") else None),
        ("bound to CPUs", settings.get("affinity")),
        ("usable cores", ", ".join(map(str, cores))),
        ("waiting threads", "spin (--latency-spinning)" if settings.get("spinning") else None),
    ]


def detail_rows(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the sections about run, models and host, without unknown rows."""
    run, teacher, student, host, size = (report[key] for key in ("run", "teacher", "student", "host", "size"))
    quantization = report.get("quantization") or {}
    rung = quantization.get("rung")
    begun = starts_from(student)
    peak = format_bytes(1e6 * run["peak_rss_mb"]) if run.get("peak_rss_mb") else None
    installed = {name: version for name, version in (run["versions"] or {}).items() if version}
    sections: list[tuple[str, list[tuple[str, Any]]]] = [
        (
            "Run",
            [
                ("data", run["data"]),
                ("test data", "not those of the bundle" if run.get("same_test_images") is False else None),
                ("preset", run["preset"]), ("seed", run["seed"]), ("commit", run["commit"]),
                ("wall time", None if run["wall_s"] is None else format_duration(run["wall_s"])),
                ("peak memory while training", peak),
                ("versions", ", ".join(f"{name} {version}" for name, version in installed.items()) or None),
            ],
        ),
        (
            "Models",
            [
                ("teacher", teacher["arch"]),
                ("teacher parameters", format_count(teacher["params"])),
                ("teacher's initial weights", _HASH.sub(lambda match: match[0][:8], teacher["weights"] or "")),
                (model_word(report), student.get("adopted") or student["arch"]),
                (f"{model_word(report)} parameters", format_count(student["params"])),
                (f"multiply-accumulates per {unit(report)}", format_count(student["macs"])),
                ("input", _input(report)),
                ("student starts from", begun),
                ("method", student["method"]),
                ("balance of the classes", {"none": None}.get(student.get("balance"), student.get("balance"))),
                ("epochs in this run" if begun else "epochs", student["epochs"]),
                ("INT8 format", quantization.get("chosen")),
                ("INT8 target", quantization.get("target")),
                ("repair step after the search", "none" if rung == "search" else rung),
                ("FP32 file", format_bytes(size["fp32_bytes"])),
                ("INT8 file", format_bytes(size["int8_bytes"])),
                ("INT8 as C (`kdedge export-c`)", c_memory(report)),
            ],
        ),
        ("Measurement", _measurement_rows(report)),
        (
            "Host",
            [
                ("processor", host["cpu"]),
                ("board", host.get("board")),
                ("cores", host["cores"]),
                ("instructions", ", ".join(host["isa"])),
                ("memory", f"{host['memory_bytes'] / 2**30:.1f} GiB"),
                ("system", host["os"]),
                ("governor", host["governor"] or "not readable"),
                ("GPU", host["gpu"] or "none"),
                ("onnxruntime", host["onnxruntime"]),
                ("TensorRT", _tensorrt(host)),
            ],
        ),
    ]  # fmt: skip
    known = [(title, [(k, str(v)) for k, v in rows if v not in (None, "")]) for title, rows in sections]
    return [(title, rows) for title, rows in known if rows]


def _tensorrt(host: Mapping[str, Any]) -> str | None:
    if "tensorrt_problem" not in host:
        return None
    return f"not available: {host['tensorrt_problem']}" if host["tensorrt_problem"] else "available"
