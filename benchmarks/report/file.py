"""Find, read and check ``report.json``, so that pages and comparisons can rely on its keys and types."""

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import InputError, command
from kdedge.files import read_json
from kdedge.progress import printable

__all__ = ["find_report", "load_report", "read_report"]

REPORT = "report.json"
_SCHEMA = 1
_HINT = "give a run directory, what `kdedge benchmark` wrote, a bundle, or a report.json"


@dataclass(frozen=True)
class _Kind:
    """A kind of JSON value.

    Attributes:
        words: Its name in messages.
        fits: Whether a value is of this kind.
    """

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> "_Kind":
        """Return the kind of these values and null."""
        return _Kind(f"{self.words} or null", lambda value: value is None or self.fits(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _one_of(*names: str) -> _Kind:
    return _Kind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


_TEXT = _Kind("text", lambda value: isinstance(value, str))
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_FLOAT = _Kind("a number", lambda value: _is_number(value) and not math.isnan(value))
_NUMBER = _Kind("a finite number", lambda value: _is_number(value) and math.isfinite(value))
_AMOUNT = _Kind("a number that is not negative", lambda value: _NUMBER.fits(value) and value >= 0)
_POSITIVE = _Kind("a positive number", lambda value: _NUMBER.fits(value) and value > 0)
_PERCENT = _Kind("a number from 0 to 100", lambda value: _NUMBER.fits(value) and 0 <= value <= 100)
_INTERVAL = _Kind(
    "two numbers from 0 to 100",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_PERCENT.fits, value)),
)
_COUNT = _Kind("a whole number that is not negative", _is_count)
_SOME = _Kind("a positive whole number", lambda value: _is_count(value) and value > 0)

# A kind, a list of one contract, or an object: a contract for every key, "*" for any other key. A key with "?" may be
# missing or null. Other keys are ignored.
_Contract = _Kind | list[Any] | dict[str, Any]

_STABILITY: _Contract = {
    "verdict": _TEXT,
    "reasons": [_TEXT],
    "doubts?": [{"kind": _TEXT, "value": _NUMBER, "bound": _NUMBER}],
}
_LOSS: _Contract = dict.fromkeys(("loss_pp", "loss_lower95_pp", "loss_upper95_pp"), _NUMBER)
_REPORT: _Contract = {
    "run": {
        **dict.fromkeys(("preset", "data", "commit"), _TEXT.or_null()),
        "seed": _COUNT.or_null(),
        "wall_s": _AMOUNT.or_null(),
        "versions?": {"*": _TEXT.or_null()},
        "peak_rss_mb?": _AMOUNT,
        "commands?": [_TEXT],
        **dict.fromkeys(("commands_lack_paths?", "same_test_images?"), _FLAG),
    },
    "teacher": {
        **dict.fromkeys(("arch", "weights"), _TEXT.or_null()),
        "params": _COUNT.or_null(),
        "test_top1_pct": _PERCENT.or_null(),
    },
    "student": {
        **dict.fromkeys(("arch", "method"), _TEXT.or_null()),
        **dict.fromkeys(("params", "macs", "epochs"), _COUNT.or_null()),
        "weights_sha256?": [_TEXT],
        "pruned?": {"from": [_COUNT], "widths": [_COUNT], "by": _TEXT},
        "train_images?": _COUNT,
        "balance?": _TEXT,
    },
    "accuracy": {
        "n": _SOME,
        "torch_fp32_top1_pct": _PERCENT.or_null(),
        **dict.fromkeys(("onnx_fp32_top1_pct", "onnx_int8_top1_pct"), _PERCENT),
        **dict.fromkeys(("onnx_fp32_ci95_pct", "onnx_int8_ci95_pct"), _INTERVAL),
        **dict.fromkeys(("images_sha256?", "majority_class?", "color?", "resize_mode?"), _TEXT),
        "image_size?": _COUNT,
        "input?": {"window": _SOME, "channels": [_TEXT], "rate_hz": _AMOUNT},
        **dict.fromkeys(
            ("majority_pct?", "balanced_pct?", "fp32_balanced_pct?", "macro_f1_pct?", "fp32_macro_f1_pct?"), _PERCENT
        ),
    },
    "gate": {
        **dict.fromkeys(("limit_pp", "loss_pp", "loss_lower95_pp", "loss_upper95_pp"), _NUMBER),
        **dict.fromkeys(("fp32_only_right", "int8_only_right"), _COUNT),
        "verdict": _one_of("passed", "failed", "undecided"),
        "reason": _TEXT,
        "cause?": _TEXT,
        "metric?": _one_of("top1", "balanced"),
        **dict.fromkeys(("groups?", "independent_images?"), _SOME),
        **dict.fromkeys(("equal_groups?", "design_effect?"), _POSITIVE),
    },
    "size": {**dict.fromkeys(("fp32_bytes", "int8_bytes"), _COUNT), "ratio": _POSITIVE},
    "int8_proof": {
        **dict.fromkeys(("integer_convs", "float_convs", "integer_gemms", "float_gemms"), _COUNT),
        "ops_by_type": {"*": _COUNT},
        "providers_by_node": {"*": _TEXT},
        "float_on_purpose?": [_TEXT],
        "float_operators?": [_TEXT],
    },
    "latency": [
        {
            **dict.fromkeys(("provider", "model"), _TEXT),
            **dict.fromkeys(("batch", "threads"), _SOME),
            "p50_ms": _POSITIVE,
            "throughput_ips": _AMOUNT,
            "samples": _COUNT,
            "trust": _STABILITY,
            **dict.fromkeys(("p90_ms?", "p95_ms?", "p99_ms?", "load_ms?", "first_run_ms?"), _AMOUNT),
            **dict.fromkeys(("cores?", "earlier_windows?"), _COUNT),
            "window_p50_ms?": [_AMOUNT],
            "ran_as?": {"convs": {"*": _COUNT}, "nodes_by_provider": {"*": _COUNT}, "subgraphs?": _COUNT},
            "on_device?": {"p50_ms": _POSITIVE, "trust": _STABILITY},
        }
    ],
    "unavailable": [dict.fromkeys(("provider", "reason", "fix"), _TEXT)],
    "host": {
        **dict.fromkeys(("cpu", "os", "onnxruntime"), _TEXT),
        **dict.fromkeys(("cores", "memory_bytes"), _COUNT),
        **dict.fromkeys(("governor", "gpu"), _TEXT.or_null()),
        "isa": [_TEXT],
        **dict.fromkeys(("board?", "tensorrt_problem?"), _TEXT),
    },
    # Only some reports have the sections below.
    "runtimes?": [
        {
            **dict.fromkeys(("provider", "model"), _TEXT),
            **dict.fromkeys(("bytes", "changed_answers"), _COUNT),
            "top1_pct": _PERCENT,
            "ci95_pct": _INTERVAL,
            **dict.fromkeys(("loss?", "own_loss?"), _LOSS),
            **dict.fromkeys(("layers?", "integer_layers?"), _COUNT),
            **dict.fromkeys(("load_ms?", "first_run_ms?"), _AMOUNT),
        }
    ],
    "memory?": [
        {
            "model": _TEXT,
            **dict.fromkeys(("peak_rss_bytes", "baseline_bytes", "limit_mib"), _COUNT.or_null()),
            **dict.fromkeys(("reason", "limit_reason"), _TEXT.or_null()),
            "within_limit": _FLAG.or_null(),
        }
    ],
    "per_class?": [
        {
            "class": _TEXT,
            **dict.fromkeys(("n", "fp32_only_right", "int8_only_right"), _COUNT),
            **dict.fromkeys(("fp32_top1_pct", "int8_top1_pct"), _PERCENT.or_null()),
            **dict.fromkeys(("fp32_precision_pct?", "int8_precision_pct?"), _PERCENT),
        }
    ],
    "c?": dict.fromkeys(("constant_bytes", "table_bytes", "buffer_bytes", "input_bytes"), _COUNT),
    "per_group?": [
        {
            "group": _TEXT,
            "n": _SOME,
            **dict.fromkeys(("fp32_only_right", "int8_only_right"), _COUNT),
            **dict.fromkeys(("fp32_top1_pct", "int8_top1_pct"), _PERCENT),
        }
    ],
    "answer_changes?": [{**dict.fromkeys(("label", "fp32", "int8"), _TEXT), "count": _COUNT}],
    "confusions?": [{**dict.fromkeys(("label", "predicted"), _TEXT), "count": _COUNT}],
    "mistakes?": [{**dict.fromkeys(("label", "predicted"), _TEXT), "image": _COUNT, "probability": _AMOUNT}],
    "portability?": {
        "emulated": [
            {
                **dict.fromkeys(("cpu", "onnxruntime"), _TEXT),
                "images": _SOME,
                "flips": _COUNT,
                "max_abs_diff": _NUMBER,
            }
        ]
    },
    "benchmark?": {"seconds?": _AMOUNT, "affinity?": _TEXT, "spinning?": _FLAG},
    "quantization?": {
        **dict.fromkeys(("chosen?", "target?", "rung?"), _TEXT),
        "scored_images?": _COUNT,
        "float_operators?": [dict.fromkeys(("type", "reason"), _TEXT)],
        "rungs?": [
            {
                "rung": _TEXT,
                "refused?": _TEXT,
                **dict.fromkeys(("loss_pp", "loss_lower95_pp", "loss_upper95_pp"), _NUMBER),
                "sqnr_db": _FLOAT,  # infinite where INT8 equals FP32
            }
        ],
    },
    "training?": [{"*": _Kind("a number, text or null", lambda value: not isinstance(value, list | dict))}],
}


def load_report(path: Path) -> dict[str, Any]:
    """Read a report as `read_report` does, with characters escaped that could change a terminal."""
    report: dict[str, Any] = _escaped(read_report(path))
    return report


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.

    Args:
        path: A ``report.json``, or the directory of a run, a benchmark or a bundle.

    Raises:
        InputError: The report is missing, unreadable or not of this schema.
    """
    file = find_report(path)
    try:
        report = read_json(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a report of kdedge: it is not a text file", _HINT) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the report {file}: {error}", _HINT) from error
    schema = report.get("schema") if isinstance(report, dict) else _SCHEMA
    if schema != _SCHEMA:
        raise InputError(f"{file} is not a report of kdedge: schema is {schema!r}, expected {_SCHEMA}", _HINT)
    problems = list(_problems("", report, _REPORT)) or list(_contradictions(report))
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{file} is not a report of kdedge: {'; '.join(problems[:3])}{more}", _HINT)
    return dict(report)


def _escaped(value: Any) -> Any:
    """Return a JSON value with every text in it as `printable` returns it."""
    if isinstance(value, dict):
        return {printable(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def find_report(path: Path) -> Path:
    """Return the file of the report at ``path``; see `read_report`.

    Raises:
        InputError: The report is missing.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path} does not exist", _HINT)
    for file in (path / "benchmark" / REPORT, path / REPORT):
        if file.is_file():
            return file
    if (path / "config.json").is_file():
        raise InputError(f"the run {path} has no report yet", f"run `{command('benchmark', '--out', path)}` first")
    raise InputError(f"{path} has no {REPORT}", _HINT)


def _problems(place: str, value: Any, contract: _Contract) -> Iterator[str]:
    """Yield the differences of a JSON value at ``place`` from a contract."""
    if isinstance(contract, _Kind):
        if not contract.fits(value):
            yield f"{place} is {reprlib.repr(value)}, expected {contract.words}"
    elif isinstance(contract, list):
        if not isinstance(value, list):
            yield f"{place} is {reprlib.repr(value)}, expected a list"
            return
        for index, item in enumerate(value):
            yield from _problems(f"{place}[{index}]", item, contract[0])
    elif not isinstance(value, dict):
        yield f"{place or 'it'} is {reprlib.repr(value)}, expected an object"
    else:
        for name, wanted in contract.items():
            key = name.removesuffix("?")
            if key == "*":
                for other in sorted(value.keys() - contract.keys()):
                    yield from _problems(_path(place, other), value[other], wanted)
            elif key in value and not (value[key] is None and name != key):
                yield from _problems(_path(place, key), value[key], wanted)
            elif name == key:
                yield f"{_path(place, key)} is missing"


def _path(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _contradictions(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield contradictions between values of a report with the right types."""
    accuracy, quantization = report["accuracy"], report.get("quantization") or {}
    for model in ("fp32", "int8"):
        (low, high), top1 = accuracy[f"onnx_{model}_ci95_pct"], accuracy[f"onnx_{model}_top1_pct"]
        if not low <= top1 <= high:
            yield f"accuracy.onnx_{model}_ci95_pct does not include onnx_{model}_top1_pct"
    if "majority_pct" in accuracy and not {"majority_class", "balanced_pct"} <= accuracy.keys():
        yield "accuracy has majority_pct without majority_class and balanced_pct"
    if report["gate"].get("groups") is not None and report["gate"].get("equal_groups") is None:
        yield "gate has groups without equal_groups"
    for index, row in enumerate(report["latency"]):
        if row.get("earlier_windows") and not row.get("window_p50_ms"):
            yield f"latency[{index}] has earlier_windows without window_p50_ms"
    for index, row in enumerate(report.get("memory") or []):
        if row["peak_rss_bytes"] is not None and row["baseline_bytes"] is None:
            yield f"memory[{index}] has peak_rss_bytes without baseline_bytes"
    for index, row in enumerate(report.get("per_class") or []):
        if any((row[key] is None) != (row["n"] == 0) for key in ("fp32_top1_pct", "int8_top1_pct")):
            yield f"per_class[{index}] has accuracies of no image, or images without an accuracy"
    if quantization.get("rungs"):
        needed = {"chosen": _TEXT, "target": _TEXT, "scored_images": _COUNT}
        yield from _problems("quantization", quantization, needed)
