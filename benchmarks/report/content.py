"""The content of the report as text, shared by console, HTML and Markdown (`kdedge.benchmarks.report.pages`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kdedge.benchmarks.accuracy import hardly_recognised
from kdedge.benchmarks.grouped import INDEPENDENT, Sampling
from kdedge.benchmarks.report.details import detail_rows, model_word, quantization_sentence, real_time, unit
from kdedge.benchmarks.stability import STEADY, stability_word, worst_doubts
from kdedge.benchmarks.units import format_bytes, format_ms, format_pct, format_ratio, short_provider

__all__ = ["context", "warnings"]

_HIGHER = ("p90", "p95", "p99")
_MOST_CHANGES = 8
_FEW_NAMES = 4
_HEADLINES = {
    "passed": "Passed: INT8 keeps its accuracy",
    "failed": "Failed: INT8 loses too much accuracy",
    "undecided": "Undecided: too few test {unit}s",
}
_FAILED_BY = {
    "learned": "Failed: the model has learned nothing",
    "gain": "Failed: INT8 does not follow FP32",
    "changed": "Failed: INT8 does not follow FP32",
}
_INTERVAL_OF = {
    "top1": "Tango's score interval for paired proportions",
    "balanced": "of balanced accuracy; paired bootstrap, stratified by class",
}
_TOO_FEW_GROUPS = "Undecided: too few groups of test {unit}s"
_MOST_GROUPS = 20


def context(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for the templates and the summary, rounded numbers as text."""
    latency = [_latency_row(row) for row in report["latency"]]
    sampling = _sampling(report["gate"])
    groups = report.get("per_group") or []
    return {
        "report": report,
        "of_groups": _of_groups(report["gate"], unit(report)),
        "headline": _headline(report["gate"]).format(unit=unit(report)),
        "subject": _subject(report),
        "key_metrics": _key_metrics(report),
        "accuracy": _accuracy_rows(report, sampling),
        "interval": _INTERVAL_OF[report["gate"].get("metric", "top1")],
        "per_class": [
            {
                **_with_pct(row),
                "int8_interval": _range(_interval(row["int8_top1_pct"], row["n"], sampling)),
                "precision": format_pct(row.get("int8_precision_pct")),
            }
            for row in report.get("per_class") or []
        ],
        "precision": any("int8_precision_pct" in row for row in report.get("per_class") or []),
        "confusions": (report.get("confusions") or [])[:_MOST_CHANGES],
        "per_group": [_with_pct(row) for row in groups[:_MOST_GROUPS]],
        "groups_hidden": max(len(groups) - _MOST_GROUPS, 0),
        "changes": _changes(report.get("answer_changes")),
        "size": _size(report["size"]),
        "latency": latency,
        "percentiles": [key for key in _HIGHER if any(row[key] != "–" for row in latency)],
        "measured_on": _measured_on(report["latency"]),
        "doubts": _doubts(report["latency"]),
        "proof": _proof_rows(report["int8_proof"]),
        "in_float": _in_float(report),
        "memory": _memory(report.get("memory") or []),
        "ran_as": _ran_as(report["latency"]),
        "runtimes": _runtimes(report),
        "portability": _portability(_emulated(report)),
        "warnings": warnings(report),
        "quantization": quantization_sentence(report.get("quantization"), unit(report)),
        "commands": report["run"].get("commands") or [],
        "commands_lack_paths": report["run"].get("commands_lack_paths", False),
        "details": detail_rows(report),
        "unit": unit(report),
        "real_time": real_time(report),
        "speedups": _speedups(report["latency"]),
        "unavailable": [{**item, "provider": short_provider(item["provider"])} for item in report["unavailable"]],
    }


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Return the warnings at the top of the report, one sentence each."""
    found = []
    if report["run"].get("same_test_images") is False:
        found.append("The test data differ from those of the bundle: do not compare accuracies")
    if weak := hardly_recognised(report.get("per_class") or []):
        found.append(weak)
    if elsewhere := _not_portable(report):
        found.append(f"INT8 is {elsewhere}")
    return found


def _subject(report: Mapping[str, Any]) -> str:
    """Return the model, the data set and its classes in one line."""
    names = [row["class"] for row in report.get("per_class") or []]
    more = f" and {len(names) - _FEW_NAMES} more" if len(names) > _FEW_NAMES else ""
    classes = f", {len(names)} classes: {', '.join(names[:_FEW_NAMES])}{more}" if names else ""
    return f"{report['student']['arch'] or 'Model'} on {report['run']['data'] or unit(report) + 's'}{classes}"


def _sampling(gate: Mapping[str, Any]) -> Sampling:
    """Return the sampling of the test images, from the entries of the gate."""
    if gate.get("groups") is None:
        return INDEPENDENT
    return Sampling(gate["groups"], gate["equal_groups"], gate.get("design_effect") or 1.0)


def _of_groups(gate: Mapping[str, Any], word: str) -> str:
    """Return how the intervals respect groups as text; empty: there are none, or they are too few."""
    if gate.get("independent_images") is None:
        return ""
    return f" for {gate['groups']:,} groups, which count as {gate['independent_images']:,} independent {word}s"


def _with_pct(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row on a class or a group with its accuracies as text."""
    return {**row, "fp32": format_pct(row["fp32_top1_pct"]), "int8": format_pct(row["int8_top1_pct"])}


def _headline(gate: Mapping[str, Any]) -> str:
    verdict = gate["verdict"]
    if verdict == "undecided" and gate.get("cause") == "groups":
        return _TOO_FEW_GROUPS
    return _FAILED_BY.get(gate.get("cause") or "", _HEADLINES[verdict]) if verdict == "failed" else _HEADLINES[verdict]


def _not_portable(report: Mapping[str, Any]) -> str:
    """Return the emulated CPUs with other INT8 predictions than the host as text; empty: none."""
    other = [
        f"{row['flips']:,} of {row['images']:,} predictions differ on {row['cpu']}"
        for row in _emulated(report)
        if row["flips"]
    ]
    return f"not portable: {', '.join(other)}" if other else ""


def _key_metrics(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers at the top of the report."""
    accuracy, size, proof = report["accuracy"], report["size"], report["int8_proof"]
    low, high = accuracy["onnx_int8_ci95_pct"]
    convs = proof["integer_convs"] + proof["float_convs"]
    metrics = [("INT8 top-1", f"{format_pct(accuracy['onnx_int8_top1_pct'])}  (95 %: {low:.2f} to {high:.2f})")]
    if "majority_pct" in accuracy:
        metrics.append((f"always `{accuracy['majority_class']}`", format_pct(accuracy["majority_pct"])))
        metrics.append(("INT8 mean per class", _mean_per_class(accuracy)))
    metrics += [
        ("FP32 top-1", format_pct(accuracy["onnx_fp32_top1_pct"])),
        ("INT8 size", f"{format_bytes(size['int8_bytes'])}, {format_ratio(size['ratio'])} than FP32"),
    ]
    for speedup in _speedups(report["latency"])[:1]:
        metrics.append(("INT8 latency", speedup))
    if timing := real_time(report):
        metrics.append(("real time", timing))
    for row in report.get("memory") or []:
        if row["model"] == "int8" and row["peak_rss_bytes"]:
            metrics.append(
                ("INT8 memory", f"{format_bytes(row['peak_rss_bytes'])} peak in a process that only runs it")
            )
    chosen = len(proof.get("float_on_purpose") or [])
    purpose = f"; {chosen} in float on purpose" if chosen else ""
    metrics.append(("integer kernels", f"{proof['integer_convs']} of {convs} convolutions{purpose}"))
    if same := [row for row in _emulated(report) if not row["flips"]]:
        count = " and ".join(sorted({f"{row['images']:,}" for row in same}))
        cpus = ", ".join(row["cpu"] for row in same)
        metrics.append(("other CPUs", f"the same {count} predictions on {cpus} (emulated)"))
    return metrics


def _mean_per_class(accuracy: Mapping[str, Any]) -> str:
    """Return the balanced accuracy and, if known, the macro-F1 as text."""
    text = format_pct(accuracy["balanced_pct"])
    return f"{text}  (macro-F1 {format_pct(accuracy['macro_f1_pct'])})" if "macro_f1_pct" in accuracy else text


def _speedups(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare INT8 with FP32 for every provider, batch and thread count with both, one sentence each."""
    by_key = {(row["provider"], row["batch"], row["threads"], row["model"]): row for row in rows}
    sentences = []
    for (provider, batch, threads, model), int8 in by_key.items():
        fp32 = by_key.get((provider, batch, threads, "fp32"))
        if model != "int8" or fp32 is None:
            continue
        steady = all(row["trust"]["verdict"] == STEADY for row in (fp32, int8))
        # No ratio of noisy latencies, because a ratio gets quoted.
        ratio = f"{fp32['p50_ms'] / int8['p50_ms']:.2f}× as fast as FP32" if steady else "not compared with FP32"
        sentences.append(
            f"{format_ms(int8['p50_ms'])} ms, {ratio} "
            f"({short_provider(provider)}, batch {batch}, {threads} thread{'s' * (threads > 1)}"
            f"{'' if steady else '; noisy: do not quote'})"
        )
    return sentences


def _accuracy_rows(report: Mapping[str, Any], sampling: Sampling) -> list[tuple[str, str, str]]:
    """Return model, top-1 and 95 % interval of every scored model."""
    accuracy = report["accuracy"]
    arch, teacher = report["teacher"]["arch"], report["teacher"]["test_top1_pct"]
    torch, word = accuracy["torch_fp32_top1_pct"], model_word(report)
    rows = [
        (f"teacher {arch or ''} (PyTorch)".replace("  ", " "), teacher, _interval(teacher, accuracy["n"], sampling)),
        (f"{word} FP32 (PyTorch)", torch, _interval(torch, accuracy["n"], sampling)),
        (f"{word} FP32 (ONNX)", accuracy["onnx_fp32_top1_pct"], accuracy.get("onnx_fp32_ci95_pct")),
        (f"{word} INT8 (ONNX)", accuracy["onnx_int8_top1_pct"], accuracy.get("onnx_int8_ci95_pct")),
    ]
    return [(name, format_pct(value), _range(interval)) for name, value, interval in rows if value is not None]


def _interval(top1_pct: float | None, n: int, sampling: Sampling) -> list[float] | None:
    """Return the 95 % interval of an accuracy on ``n`` images, in percent."""
    return None if top1_pct is None else sampling.wilson_pct(round(n * top1_pct / 100), n)


def _range(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else ""


def _latency_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the latency table as text."""
    return {
        "provider": short_provider(row["provider"]),
        "model": row["model"].upper(),
        "batch": row["batch"],
        "threads": row["threads"],
        **{key: format_ms(row.get(f"{key}_ms")) for key in ("p50", *_HIGHER, "load", "first_run")},
        "throughput": f"{row['throughput_ips']:,.0f}",
        "samples": f"{row['samples']:,}{'*' if row.get('earlier_windows') else ''}",
        "steady": row["trust"]["verdict"] == STEADY,
        "trust": stability_word(row["trust"]["verdict"]),
    }


def _measured_on(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the footnote of the star after a number of calls; empty: no row has a star."""
    counted = [(len(row["window_p50_ms"]), row["earlier_windows"]) for row in rows if row.get("earlier_windows")]
    if not counted:
        return ""
    totals = sorted({last + earlier for last, earlier in counted})
    return (
        f"the last {counted[0][0]} windows of {' to '.join(map(str, dict.fromkeys((totals[0], totals[-1]))))}; the "
        "disturbed ones before them do not count"
    )


def _changes(rows: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return counts and most frequent kinds of the predictions that INT8 changes; None: unknown."""
    if rows is None:
        return None
    lost = sum(row["count"] for row in rows if row["fp32"] == row["label"])
    won = sum(row["count"] for row in rows if row["int8"] == row["label"])
    total = sum(row["count"] for row in rows)
    shown = rows[:_MOST_CHANGES]
    return {
        "total": total,
        "lost": lost,
        "won": won,
        "other": total - lost - won,
        "rows": [
            {**row, "effect": "lost" if row["fp32"] == row["label"] else "won" if row["int8"] == row["label"] else ""}
            for row in shown
        ],
        "hidden": total - sum(row["count"] for row in shown),
    }


def _size(size: Mapping[str, Any]) -> str:
    fp32, int8 = (f"{size[f'{model}_bytes']:,} bytes" for model in ("fp32", "int8"))
    return f"INT8: {int8}, {format_ratio(size['ratio'])} than FP32 with {fp32}."


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on the memory of each model (see `kdedge.benchmarks.memory.measure_memory`)."""
    sentences = []
    for row in rows:
        if row["peak_rss_bytes"] is None:
            sentences.append(f"{row['model'].upper()}: unknown, {row['reason']}")
            continue
        peak, before = format_bytes(row["peak_rss_bytes"]), format_bytes(row["baseline_bytes"])
        text = f"{row['model'].upper()}: peak {peak}, of which {before} before the model is loaded"
        if row["limit_mib"]:
            kept = "fits into" if row["within_limit"] else "does not fit into"
            reason = f" ({row['limit_reason']})" if row["limit_reason"] else ""
            text += f"; {kept} {row['limit_mib']} MiB of heap and buffers{reason}"
        sentences.append(text)
    return sentences


def _ran_as(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return arithmetic, providers and latency without copies of each model on an accelerator, a sentence each."""
    sentences = []
    for row in rows:
        if "ran_as" not in row:
            continue
        convs = ", ".join(f"{count} {kind}" for kind, count in row["ran_as"]["convs"].items()) or "none"
        if parts := row["ran_as"].get("subgraphs"):
            # The profile does not show their inside.
            convs = f"in {parts} compiled subgraph{'s' * (parts > 1)}"
        nodes = ", ".join(
            f"{count} on {short_provider(name)}" for name, count in row["ran_as"]["nodes_by_provider"].items()
        )
        model = f"{short_provider(row['provider'])} {row['model'].upper()}, batch {row['batch']}"
        text = f"{model}: convolutions {convs}; nodes {nodes}"
        if row.get("on_device"):
            resident = row["on_device"]
            text += f"; p50 without copies {format_ms(resident['p50_ms'])} ms ({resident['trust']['verdict']})"
        sentences.append(text)
    return sentences


def _runtimes(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the table of other ways to run the models (see `kdedge.benchmarks.alternatives.comparison`)."""
    timed: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in report["latency"]:
        timed.setdefault((row["provider"], row["model"]), row)  # the first batch size and thread count
    rows = []
    for row in report.get("runtimes") or []:
        latency = _latency_row(timed[row["provider"], row["model"]])
        loads = {key: format_ms(row.get(f"{key}_ms")) for key in ("load", "first_run")}
        rows.append(
            {
                **latency,
                **loads,
                "top1": format_pct(row["top1_pct"]),
                "loss": _loss(row.get("loss")),
                "own_loss": _loss(row.get("own_loss")),
                "changed": f"{row['changed_answers']:,}",
                "size": format_bytes(row["bytes"]),
                "integer": "unknown" if row.get("layers") is None else f"{row['integer_layers']} of {row['layers']}",
            }
        )
    return rows


def _loss(loss: Mapping[str, float] | None) -> str:
    """Return a loss in percentage points with its 95 % interval as text; None: not compared."""
    if loss is None:
        return "–"
    return f"{loss['loss_pp']:+.2f} ({loss['loss_lower95_pp']:+.2f} to {loss['loss_upper95_pp']:+.2f})"


def _emulated(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a row for every emulated CPU (see `kdedge.benchmarks.emulate.emulator.Emulation.as_dict`)."""
    return (report.get("portability") or {}).get("emulated") or []


def _portability(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the table of emulated CPUs (see `_emulated`)."""
    return [
        {
            "cpu": row["cpu"],
            "images": f"{row['images']:,}",
            "flips": f"{row['flips']:,}",
            "difference": f"{row['max_abs_diff']:.3g}" if row["max_abs_diff"] else "0 (identical)",
            "runtime": row["onnxruntime"],
        }
        for row in rows
    ]


def _doubts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each kind of doubt about the latencies once, with its worst value and its count."""
    verdicts = [timed["trust"] for row in rows for timed in (row, row.get("on_device")) if timed]
    return [
        f"{sentence} ({'the worst of' if count > 1 else 'in'} {count} of {len(verdicts)} measurements)"
        for sentence, count in worst_doubts(verdicts)
    ]


def _in_float(report: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """Return number, type and reason of the float operators of a quantized model, the most frequent first."""
    found = (report.get("quantization") or {}).get("float_operators") or []
    counts = Counter((row["type"], row["reason"]) for row in found)
    return [(count, kind, reason) for (kind, reason), count in counts.most_common()]


def _proof_rows(proof: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows on integer and float kernels."""
    providers = {short_provider(name) for name in proof["providers_by_node"].values()}
    chosen = proof.get("float_on_purpose") or []
    others = [name for name in proof.get("float_operators") or [] if name not in chosen]
    groups = {"on purpose, for accuracy": chosen, "others" if chosen else "": others}
    left = [f"{group}: {', '.join(names)}".removeprefix(": ") for group, names in groups.items() if names]
    return {
        "convs": f"{proof['integer_convs']} integer, {proof['float_convs']} float",
        "gemms": f"{proof['integer_gemms']} integer, {proof['float_gemms']} float",
        "float": "; ".join(left) or "none",
        "ops": ", ".join(f"{count} × {op}" for op, count in proof["ops_by_type"].items()),
        "providers": ", ".join(sorted(providers)),
    }
