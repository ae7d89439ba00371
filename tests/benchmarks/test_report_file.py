"""A report with wrong types is refused with the path of the key, and whatever is accepted can be shown."""

import copy
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdedge.benchmarks.report.compare import compare_reports, tabulate
from kdedge.benchmarks.report.compare_text import comparison_markdown
from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.report.pages import print_summary, render_html, render_markdown
from kdedge.errors import InputError
from kdedge.pipeline.cli import app

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
VALUES = (None, "text", "", -1, 0, 1.5, True, 10**15, 1e308, math.inf, math.nan, [], [None], {}, {"key": []})
Keys = tuple[str | int, ...]


def shortened(value: Any) -> Any:
    """Return a JSON value with at most one item of every list, or two where they are an interval."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return value if len(value) == 2 and isinstance(value[0], float) else [shortened(item) for item in value[:1]]
    return value


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = shortened(json.loads((REFERENCE / name / "report.json").read_text()))
    return report


def paths(value: Any, at: Keys = ()) -> Iterator[Keys]:
    """Yield the place of every container and leaf in a JSON value."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*at, key))


def mutated(report: dict[str, Any], at: Keys, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    parent: Any = changed
    for key in at[:-1]:
        parent = parent[key]
    parent[at[-1]] = value
    return changed


def show(report: dict[str, Any], original: dict[str, Any]) -> None:
    """Make everything that the commands make of a report, without figures."""
    render_markdown(report, [])
    render_html(report, [])
    print_summary(report)
    names = ("one", "two")
    comparison_markdown(compare_reports(original, report, names))
    comparison_markdown(compare_in_table(report, original, names))


def compare_in_table(report: dict[str, Any], original: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    alike = {**original, "run": report["run"], "accuracy": report["accuracy"]}
    return tabulate([alike, report], names)


@pytest.mark.parametrize(("name", "first"), [("benchmark", 0), ("sizes/lite", 3)])
def test_a_wrong_value_anywhere_is_refused_or_shown(name: str, first: int, tmp_path: Path) -> None:
    """Each place of a current and of an old report gets one of the values; each value comes up often."""
    report, file, refused = read(name), tmp_path / "report.json", 0
    values = itertools.cycle((*VALUES[first:], *VALUES[:first]))
    places = list(paths(report))
    for at, value in zip(places, values, strict=False):
        file.write_text(json.dumps(mutated(report, at, value)))
        try:
            shown = load_report(file)
        except InputError as error:
            refused += str(at[0]) in str(error)
            continue
        try:
            show(shown, report)
        except InputError:
            continue
        except Exception as error:
            pytest.fail(f"{at} = {value!r}: {error!r}")
    assert len(places) / 4 < refused < len(places)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("latency", 0, "load_ms"), "slow", "latency[0].load_ms is 'slow', expected a number that is not negative"),
        (("latency", 0, "p90_ms"), [], "latency[0].p90_ms is [], expected"),
        (("latency", 0, "earlier_windows"), "3", "latency[0].earlier_windows is '3', expected a whole number"),
        (("latency", 0, "window_p50_ms"), [None], "latency[0].window_p50_ms[0] is None, expected"),
        (("latency", 0, "cores"), {}, "latency[0].cores is {}, expected"),
        (("int8_proof", "providers_by_node"), {"conv": 1}, "int8_proof.providers_by_node.conv is 1, expected text"),
        (("int8_proof", "float_on_purpose"), [1], "int8_proof.float_on_purpose[0] is 1, expected text"),
        (("run", "commands"), "kdedge", "run.commands is 'kdedge', expected a list"),
        (("host", "isa"), [1], "host.isa[0] is 1, expected text"),
        (("teacher", "weights"), 5, "teacher.weights is 5, expected text or null"),
        (("accuracy", "onnx_int8_top1_pct"), 1.0, "accuracy.onnx_int8_ci95_pct does not include onnx_int8_top1_pct"),
        (("per_class", 0, "int8_top1_pct"), None, "per_class[0] has accuracies of no image, or images without"),
    ],
)  # fmt: skip
def test_the_message_names_the_key(at: Keys, value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(mutated(read("benchmark"), at, value)))
    for others in ([], [REFERENCE], [REFERENCE, REFERENCE / "sizes" / "lite"]):
        result = CliRunner().invoke(app, ["report", str(tmp_path), *map(str, others)])
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_doubts_of_a_later_version_are_shown_as_their_reasons(tmp_path: Path) -> None:
    trust = {
        "verdict": "noisy: do not quote",
        "reasons": ["the moon is full"],
        "doubts": [{"kind": "moon", "value": 1.0, "bound": 0}],
    }
    (tmp_path / "report.json").write_text(json.dumps(mutated(read("benchmark"), ("latency", 0, "trust"), trust)))
    assert "the moon is full" in render_markdown(load_report(tmp_path), [])
