"""`--compare-with`: other runs in the report of the one that is measured."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kdedge.benchmarks.host import host_record
from kdedge.benchmarks.measure import run_benchmark
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.errors import InputError
from kdedge.parsing import parse_paths
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.shareable import as_flags

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
REPORT: dict[str, Any] = json.loads((REFERENCE / "benchmark-vnni" / "report.json").read_text())


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Write a report that was measured here on the test images of the fixture `dataset`."""
    return write(tmp_path / "runs" / "lite-s")


def write(folder: Path, **changes: dict[str, Any]) -> Path:
    report = copy.deepcopy(REPORT)
    report["host"] = json.loads(json.dumps(host_record()))
    report["run"]["data"], report["accuracy"]["n"], report["student"]["arch"] = "made-up", 300, "lite-s"
    for section, values in changes.items():
        report[section].update(values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def measure(models: dict[str, Path], dataset: Any, out: Path, others: str) -> dict[str, Any]:
    options = BenchmarkConfig(seconds=0.05, batches="1", compare_with=others)
    facts = {"student": {"arch": "lite"}}
    return run_benchmark(
        options,
        models["fp32"],
        models["int8"],
        dataset,
        images_sha256="1" * 64,
        run_facts=facts,
        torch_top1=None,
        out_dir=out,
    )


def test_other_runs_are_compared_with_this_one(
    models: dict[str, Path], dataset: Any, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = measure(models, dataset, out, str(other))
    assert json.loads((out / "report.json").read_text()) == report
    rows = {(row["run"], row["model"]): row for row in report["beside"]["rows"]}
    assert {run: row["label"] for (run, _), row in rows.items()} == {"A": "lite (this run)", "B": "lite-s"}
    assert rows["A", "int8"]["p50_ms"] == report["latency"][1]["p50_ms"]
    assert rows["B", "int8"]["p50_ms"] == REPORT["latency"][1]["p50_ms"]
    assert rows["B", "int8"]["top1_pct"] == REPORT["accuracy"]["onnx_int8_top1_pct"]
    assert (out / "figures" / "beside.png").read_bytes().startswith(b"\x89PNG")
    assert "](figures/beside.png)" in (out / "report.md").read_text()
    assert "<h2>Compared with other runs</h2>" in (out / "report.html").read_text()
    # A report is given away: where the others lie on this machine is not in it.
    assert str(tmp_path) not in (out / "report.json").read_text()


def test_without_others_nothing_is_compared(models: dict[str, Path], dataset: Any, tmp_path: Path) -> None:
    assert measure(models, dataset, tmp_path, "")["beside"] is None
    assert not (tmp_path / "figures" / "beside.png").exists()
    assert "Compared with other runs" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "case",
    [
        ({"host": {"cpu": "Cortex-A76"}}, "--compare-with: latencies of different hosts .*Cortex-A76", []),
        (
            {"run": {"data": "cifar10"}},
            "--compare-with: accuracies on different .*this run: made-up .1{8}.; .*odd: cifar10",
            [],
        ),
        (
            {"accuracy": {"n": 299}},
            "--compare-with: accuracies on different .*this run: 300 of made-up .1{8}.; .*odd: 299 of",
            ["test"],
        ),
        (
            {"accuracy": {"images_sha256": "2" * 64, "image_size": 16}},
            "--compare-with: accuracies on different .*this run: made-up .1{8}.; .*odd: made-up .2{8}.",
            [],
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    models: dict[str, Path], dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any
) -> None:
    changes, message, reads = case
    monkeypatch.setattr("kdedge.benchmarks.measure.predict_logits", lambda *_, **__: pytest.fail("measured"))
    folders = [write(tmp_path / "fine"), write(tmp_path / "odd", **changes)]
    with pytest.raises(InputError, match=message):
        measure(models, dataset, tmp_path / "out", ",".join(map(str, folders)))
    assert dataset.reads == reads
    assert not (tmp_path / "out").exists()


def test_a_report_that_is_not_there_is_refused(models: dict[str, Path], dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        measure(models, dataset, tmp_path / "out", str(tmp_path / "nowhere"))
    assert dataset.reads == []


def test_paths_are_parsed_and_stay_out_of_the_command_of_the_report() -> None:
    assert parse_paths("", "--compare-with") == []
    assert parse_paths("a/b, c,a/b", "--compare-with") == [Path("a/b"), Path("c")]
    with pytest.raises(InputError, match="--compare-with 'a,,b': nothing between two commas"):
        build_config({"benchmark": {"compare_with": "a,,b"}})
    config = build_config({"benchmark": {"compare_with": "/home/me/a,/home/me/b", "seconds": 9}})
    assert as_flags(config) == ["--latency-seconds", "9.0"]
