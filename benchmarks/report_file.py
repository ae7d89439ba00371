"""Reading a report: where it lies, and whether it has what the pages and the comparisons rely on."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.progress import printable

__all__ = ["find_report", "load_report", "read_report"]

REPORT = "report.json"
_SCHEMA = 1
_HINT = "give a run directory, what `kdedge benchmark` wrote, a bundle, or a report.json"

_NUMBER, _TEXT, _LIST, _DICT, _ANY = (int, float), (str,), (list,), (dict,), (object,)
_NONE = (type(None),)
_SCORE = (*_NUMBER, *_NONE)
# What the pages and the comparison rely on: the keys of a section with their types.
_NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {
        **dict.fromkeys(("preset", "data", "seed", "commit"), _ANY),
        "wall_s": _SCORE,
        "versions": (*_DICT, *_NONE),
    },
    "teacher": {**dict.fromkeys(("arch", "params", "weights"), _ANY), "test_top1_pct": _SCORE},
    "student": dict.fromkeys(("arch", "params", "macs", "method", "epochs"), _ANY),
    "accuracy": {
        **dict.fromkeys(("n", "onnx_fp32_top1_pct", "onnx_int8_top1_pct"), _NUMBER),
        **dict.fromkeys(("onnx_fp32_ci95_pct", "onnx_int8_ci95_pct"), _LIST),
        "torch_fp32_top1_pct": _SCORE,
    },
    "gate": {
        **dict.fromkeys(("limit_pp", "loss_pp", "loss_lower95_pp", "loss_upper95_pp"), _NUMBER),
        **dict.fromkeys(("fp32_only_right", "int8_only_right"), _NUMBER),
        **dict.fromkeys(("verdict", "reason"), _TEXT),
    },
    "size": dict.fromkeys(("fp32_bytes", "int8_bytes", "ratio"), _NUMBER),
    "int8_proof": {
        **dict.fromkeys(("integer_convs", "float_convs", "integer_gemms", "float_gemms"), _NUMBER),
        **dict.fromkeys(("ops_by_type", "providers_by_node"), _DICT),
    },
    "host": {
        **dict.fromkeys(("cpu", "os", "onnxruntime"), _TEXT),
        **dict.fromkeys(("cores", "memory_bytes"), _NUMBER),
        **dict.fromkeys(("governor", "gpu"), _ANY),
        "isa": _LIST,
    },
}
_NEEDED_OF_A_ROW: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("provider", "model"), _TEXT),
    **dict.fromkeys(("batch", "threads", "p50_ms", "throughput_ips", "samples"), _NUMBER),
    "trust": _DICT,
}
_NEEDED_OF_A_CPU: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("cpu", "onnxruntime"), _TEXT),
    **dict.fromkeys(("images", "flips", "max_abs_diff"), _NUMBER),
}
_NEEDED_OF_A_LACK = dict.fromkeys(("provider", "reason", "fix"), _TEXT)
# Sections that only some reports have: the keys of their rows.
_NEEDED_IF_THERE: dict[str, dict[str, tuple[type, ...]]] = {
    "memory": {
        "model": _TEXT,
        **dict.fromkeys(("peak_rss_bytes", "baseline_bytes", "limit_mib"), _SCORE),
        **dict.fromkeys(("reason", "limit_reason"), (*_TEXT, *_NONE)),
        "within_limit": (bool, *_NONE),
    },
    "per_class": {
        "class": _ANY,
        **dict.fromkeys(("n", "fp32_only_right", "int8_only_right"), _NUMBER),
        **dict.fromkeys(("fp32_top1_pct", "int8_top1_pct"), _SCORE),
    },
    "answer_changes": {**dict.fromkeys(("label", "fp32", "int8"), _ANY), "count": _NUMBER},
}
_NEEDED_OF_QUANTIZATION = {**dict.fromkeys(("chosen", "target"), _TEXT), "scored_images": _NUMBER}
_NEEDED_OF_A_RUNG = {
    "rung": _TEXT,
    **dict.fromkeys(("loss_pp", "loss_lower95_pp", "loss_upper95_pp", "sqnr_db"), _NUMBER),
}
_VERDICTS = ("passed", "failed", "undecided")


def load_report(path: Path) -> dict[str, Any]:
    """Read a report to show it: as `read_report`, without characters that could change a terminal."""
    report: dict[str, Any] = _escaped(read_report(path))
    return report


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.

    Args:
        path: A ``report.json``, or a directory that holds one: a run, a benchmark, a bundle.

    Raises:
        InputError: There is none, it cannot be read, or it is no report of this schema.
    """
    file = find_report(path)
    try:
        report = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the report {file}: {error}", _HINT) from error
    problems = _problems(report)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{file} is no report of kdedge: {'; '.join(problems[:3])}{more}", _HINT)
    return dict(report)


def _escaped(value: Any) -> Any:
    """Return a JSON value with every text in it as `printable` returns it."""
    if isinstance(value, dict):
        return {printable(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def find_report(path: Path) -> Path:
    """Return the file of the report that ``path`` means; see `load_report`.

    Raises:
        InputError: There is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path} does not exist", _HINT)
    for file in (path / "benchmark" / REPORT, path / REPORT):
        if file.is_file():
            return file
    if (path / "config.json").is_file():
        raise InputError(f"the run {path} has no report yet", f"run `kdedge benchmark --out {path}` first")
    raise InputError(f"{path} holds no {REPORT}", _HINT)


def _problems(report: Any) -> list[str]:
    """Return what keeps a JSON value from being a report."""
    if not isinstance(report, dict):
        return [f"it holds {type(report).__name__}, expected an object"]
    if report.get("schema") != _SCHEMA:
        return [f"schema is {report.get('schema')!r}, expected {_SCHEMA}"]
    problems = []
    for section, keys in _NEEDED.items():
        found = report.get(section)
        if not isinstance(found, dict):
            problems.append(f"{section} is missing")
        else:
            problems += _wrong_keys(section, found, keys)
    if not problems:
        problems += _wrong_intervals(report["accuracy"])
    problems += _wrong_rows("unavailable", report.get("unavailable"), _NEEDED_OF_A_LACK)
    problems += _wrong_if_there(report)
    rows = report.get("latency")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return [*problems, "latency is no list of rows"]
    for index, row in enumerate(rows):
        wrong = _wrong_keys(f"latency[{index}]", row, _NEEDED_OF_A_ROW)
        problems += wrong or _wrong_keys(f"latency[{index}].trust", row["trust"], {"verdict": _TEXT, "reasons": _LIST})
        if not wrong and not row["p50_ms"] > 0:
            problems.append(f"latency[{index}].p50_ms is not positive")
    if not problems and report["gate"]["verdict"] not in _VERDICTS:
        problems.append(f"gate.verdict is {report['gate']['verdict']!r}, expected one of {', '.join(_VERDICTS)}")
    return problems


def _wrong_if_there(report: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the sections that only some reports have."""
    problems = []
    for section, keys in _NEEDED_IF_THERE.items():
        if report.get(section) is not None:
            problems += _wrong_rows(section, report[section], keys)
    quantization = report.get("quantization")
    if not isinstance(quantization, dict | None):
        problems.append("quantization is no object")
    elif quantization and quantization.get("rungs"):
        problems += _wrong_keys("quantization", quantization, _NEEDED_OF_QUANTIZATION)
        problems += _wrong_rows("quantization.rungs", quantization["rungs"], _NEEDED_OF_A_RUNG)
    return problems + _wrong_portability(report.get("portability"))


def _wrong_portability(found: Any) -> list[str]:
    """Return what is wrong with the answers on emulated CPUs, which only some reports have."""
    if found is None:
        return []
    place, rows = "portability.emulated", found.get("emulated") if isinstance(found, dict) else None
    return _wrong_rows(place, rows, _NEEDED_OF_A_CPU) or [
        f"{place}[{index}].images is not positive" for index, row in enumerate(rows or ()) if not row["images"] > 0
    ]


def _wrong_intervals(accuracy: Mapping[str, Any]) -> list[str]:
    """Return the 95 % intervals that are not two numbers."""
    found = {key: accuracy[key] for key in ("onnx_fp32_ci95_pct", "onnx_int8_ci95_pct")}
    return [
        f"accuracy.{key} is {interval!r}, expected two numbers"
        for key, interval in found.items()
        if len(interval) != 2 or not all(isinstance(end, _NUMBER) for end in interval)
    ]


def _wrong_rows(place: str, rows: Any, keys: Mapping[str, tuple[type, ...]]) -> list[str]:
    """Return what is wrong with a list of rows."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return [f"{place} is no list of rows"]
    return [problem for index, row in enumerate(rows) for problem in _wrong_keys(f"{place}[{index}]", row, keys)]


def _wrong_keys(place: str, found: Mapping[str, Any], keys: Mapping[str, tuple[type, ...]]) -> list[str]:
    """Return the keys that are missing or of another type."""
    problems = []
    for key, types in keys.items():
        value = found.get(key)
        # Where INT8 equals FP32, the ratio of signal to noise is infinite.
        endless = isinstance(value, float) and not math.isfinite(value) and key != "sqnr_db" and types is not _ANY
        if key not in found:
            problems.append(f"{place}.{key} is missing")
        elif endless or not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            problems.append(f"{place}.{key} is {value!r}")
    return problems
