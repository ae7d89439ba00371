"""The whole stage on a tiny network: the contract of report.json, and what is measured and checked."""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import OPTIONS, benchmark

from kdedge.benchmarks import measure as stage
from kdedge.benchmarks.candidate import Candidate
from kdedge.benchmarks.interval import wilson_interval_pct
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.benchmarks.report import figures
from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.report.pages import print_summary, render_markdown
from kdedge.benchmarks.session import open_model
from kdedge.errors import InputError, StageError

# Schema 1 may gain keys, never lose one.
CONTRACT: dict[str, set[str]] = {
    "run": {"preset", "data", "seed", "commit", "wall_s", "versions"},
    "teacher": {"arch", "params", "weights", "test_top1_pct"},
    "student": {"arch", "params", "macs", "method", "epochs"},
    "accuracy": {"split", "n", "torch_fp32_top1_pct", "onnx_fp32_top1_pct", "onnx_int8_top1_pct"},
    "gate": {
        "limit_pp", "loss_pp", "loss_upper95_pp", "fp32_only_right", "int8_only_right", "verdict", "passed", "reason",
    },
    "size": {"fp32_bytes", "int8_bytes", "ratio"},
    "int8_proof": {
        "integer_convs", "float_convs", "integer_gemms", "float_gemms", "ops_by_type", "providers_by_node",
    },
    "host": {"cpu", "cores", "isa", "memory_bytes", "os", "governor", "gpu", "onnxruntime"},
}  # fmt: skip
LATENCY = {
    "provider", "model", "batch", "threads", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "throughput_ips", "samples",
    "load_ms", "first_run_ms", "trust",
}  # fmt: skip


def test_report_keeps_the_contract(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    assert json.loads((out / "report.json").read_text()) == report
    assert report["schema"] == 1
    for section, keys in CONTRACT.items():
        assert keys <= report[section].keys(), section
    assert (report["accuracy"]["images_sha256"], report["accuracy"]["image_size"]) == ("1" * 64, 16)
    assert report["accuracy"]["resize_mode"] == "squeeze"
    assert len(report["latency"]) == 4
    for row in report["latency"]:
        assert row.keys() >= LATENCY
        assert row["trust"].keys() >= {"verdict", "reasons"}
    for item in report["unavailable"]:
        assert item.keys() >= {"provider", "reason"}


def test_report_holds_what_was_measured(finished: tuple[dict[str, Any], Path], models: dict[str, Path]) -> None:
    report, out = finished
    accuracy, gate = report["accuracy"], report["gate"]
    assert (accuracy["split"], accuracy["n"], accuracy["torch_fp32_top1_pct"]) == ("test", 120, 25.0)
    assert report["teacher"]["test_top1_pct"] == 77.5
    assert report["run"]["extra"] == "kept"
    loss = accuracy["onnx_fp32_top1_pct"] - accuracy["onnx_int8_top1_pct"]
    assert gate["loss_pp"] == pytest.approx(loss, abs=2e-4)
    assert gate["verdict"] == "undecided"
    assert gate["images_to_decide"] > 120
    assert report["size"]["int8_bytes"] == models["int8"].stat().st_size
    assert sum(row["n"] for row in report["per_class"]) == 120
    samples = json.loads((out / "latency_samples.json").read_text())
    assert [sum(map(len, case["windows_ms"])) for case in samples] == [row["samples"] for row in report["latency"]]
    assert [row["model"] for row in report["memory"]] == ["fp32", "int8"]
    assert all(row["peak_rss_bytes"] or row["reason"] for row in report["memory"])
    assert report["benchmark"]["batches"] == "1,2"


def test_files_of_the_stage(finished: tuple[dict[str, Any], Path]) -> None:
    _, out = finished
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    drawn = {f"figures/{name}.png" for name in ("latency", "per_class", "confusion", "mistakes", "training", "beta")}
    assert names == {"report.json", "report.html", "report.md", "latency_samples.json"} | drawn
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_wrong_predictions_are_counted_and_the_most_confident_named(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    wrong = {row["class"]: row["n"] - round(row["n"] * row["int8_top1_pct"] / 100) for row in report["per_class"]}
    for name, count in wrong.items():
        assert sum(row["count"] for row in report["confusions"] if row["label"] == name) == count
    mistakes = report["mistakes"]
    assert len(mistakes) == min(24, sum(wrong.values())) > 0
    probabilities = [row["probability"] for row in mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(row["label"] != row["predicted"] and 0.25 < row["probability"] <= 1 for row in mistakes)
    first = report["confusions"][0]
    text = (out / "report.md").read_text()
    escaped = [first[key].replace("|", "\\|") for key in ("label", "predicted")]
    assert (
        "| images | image shows | INT8 predicts |\n|---:|---|---|\n" + f"| {first['count']} | {' | '.join(escaped)} |"
        in text
    )
    assert "macro-F1" in text
    assert "INT8 precision" in text


def test_a_float_layer_that_nobody_chose_is_an_error_before_the_test_images_are_read(
    models: dict[str, Path], dataset: Any, tmp_path: Path
) -> None:
    for name in ("mixed", "misnamed"):
        with pytest.raises(StageError, match=r"in FP32: conv2$") as caught:
            benchmark(OPTIONS, models["fp32"], models[name], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path)
        assert "kdedge quantize" in str(caught.value.hint)
    assert dataset.reads == []


def test_a_float_layer_that_was_chosen_is_named_as_such(
    models: dict[str, Path], dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = benchmark(
        OPTIONS, models["fp32"], models["chosen"], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path
    )
    assert report["int8_proof"]["float_on_purpose"] == ["conv2"]
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "on purpose, for accuracy: conv2" in text
        assert "1 of 2 convolutions; 1 in float on purpose" in text
    print_summary(report)
    assert "1 of 2 convolutions; 1 in float on purpose" in capsys.readouterr().out


def test_answers_on_emulated_cpus_go_into_the_report_and_fail_no_gate(
    models: dict[str, Path], dataset: Any, tmp_path: Path
) -> None:
    row = {
        "cpu": "haswell", "images": 20, "flips": 1, "flipped": [{"image": 15, "native": 0, "emulated": 2}],
        "max_abs_diff": 0.5, "onnxruntime": "9.9",
    }  # fmt: skip
    seen = []

    def emulate(model: Path, test: Any) -> list[dict[str, Any]]:
        seen.append((model, test))
        return [row]

    paths = models["fp32"], models["int8"]
    report = benchmark(OPTIONS, *paths, dataset, run_facts={}, torch_top1=None, emulate=emulate, out_dir=tmp_path)
    assert [(model, test is dataset.split) for model, test in seen] == [(models["int8"], True)]
    assert dataset.reads == ["test"]
    assert report["portability"] == {"emulated": [row]}
    assert json.loads((tmp_path / "report.json").read_text())["portability"] == report["portability"]
    for name in ("report.html", "report.md"):
        assert "not portable: 1 of 20 predictions differ on haswell" in (tmp_path / name).read_text()
    alone = benchmark(OPTIONS, *paths, dataset, run_facts={}, torch_top1=None, out_dir=tmp_path)
    assert alone["portability"] is None
    assert alone["gate"] == report["gate"]


def test_the_gate_can_judge_balanced_accuracy(
    dataset: Any, models: dict[str, Path], tmp_path: Path, no_report_figures: None
) -> None:
    options = dataclasses.replace(OPTIONS, metric="balanced", batches="1")
    report = benchmark(
        options, models["fp32"], models["int8"], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path
    )
    accuracy, gate = report["accuracy"], report["gate"]
    assert gate["metric"] == "balanced"
    assert gate["loss_pp"] == pytest.approx(accuracy["fp32_balanced_pct"] - accuracy["balanced_pct"], abs=1e-3)
    for name in ("report.html", "report.md"):
        assert "of balanced accuracy; paired bootstrap, stratified by class" in (tmp_path / name).read_text()


def test_without_torch_training_and_matplotlib(
    models: dict[str, Path], dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "deep" / "benchmark"
    report = benchmark(OPTIONS, models["fp32"], models["int8"], dataset, run_facts={}, torch_top1=None, out_dir=out)
    assert dataset.reads == ["test"]
    assert report["accuracy"]["onnx_fp32_top1_pct"] == 90.0
    assert report["accuracy"]["torch_fp32_top1_pct"] is None
    assert report["teacher"] == {"arch": None, "params": None, "weights": None, "test_top1_pct": None}
    for section, keys in CONTRACT.items():
        assert keys <= report[section].keys(), section
    assert not (out / "figures").exists()
    assert "<picture>" not in (out / "report.html").read_text()
    assert "None" not in re.sub(r"<style>.*?</style>", "", (out / "report.html").read_text(), flags=re.DOTALL)


def test_groups_are_in_the_gate_the_intervals_and_the_pages(
    models: dict[str, Path], dataset: Any, tmp_path: Path, finished: tuple[dict[str, Any], Path]
) -> None:
    groups = np.char.add("herd | ", (np.arange(300) // 10).astype(str))
    dataset.split = dataclasses.replace(dataset.split, groups=groups)
    options = BenchmarkConfig(seconds=0.05, batches="1")
    report = benchmark(
        options, models["fp32"], models["int8"], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path
    )
    assert load_report(tmp_path) == report
    assert report["gate"]["groups"] == len(report["per_group"]) == 30
    assert sum(row["n"] for row in report["per_group"]) == 300
    accuracies = [row["int8_top1_pct"] for row in report["per_group"]]
    assert accuracies == sorted(accuracies)
    low, high = report["accuracy"]["onnx_int8_ci95_pct"]
    top1 = report["accuracy"]["onnx_int8_top1_pct"]
    narrow = wilson_interval_pct(round(3 * top1), 300)
    assert (low, high) != pytest.approx(narrow)
    assert low <= narrow[0]
    assert high >= narrow[1]
    assert (tmp_path / "figures" / "per_group.png").exists()
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "test images of 30 groups" in text
        assert f"(Wilson for 30 groups, which count as {report['gate']['independent_images']} independent" in text
        assert "10 groups with a higher accuracy" in text
    assert finished[0]["per_group"] == []
    undecided = {**report, "gate": {**report["gate"], "verdict": "undecided", "cause": "groups"}}
    assert render_markdown(undecided, []).startswith("# Undecided: too few groups of test images\n")


def test_bad_models_are_found_before_the_test_images_are_read(
    models: dict[str, Path], dataset: Any, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(models["int8"].read_bytes()[:500])
    with pytest.raises(InputError, match="not a usable ONNX model"):
        benchmark(OPTIONS, models["fp32"], cut, dataset, run_facts={}, torch_top1=None, out_dir=tmp_path)
    dataset.class_names = ("a", "b")
    with pytest.raises(InputError, match="has 4 classes, the data set has 2"):
        benchmark(OPTIONS, models["fp32"], models["int8"], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path)
    assert dataset.reads == []


def test_another_provider_is_measured_in_turn_and_compared(
    models: dict[str, Path], dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report_figures: None
) -> None:
    kernels = {"convs": {}, "nodes_by_provider": {"FastExecutionProvider": 1}, "subgraphs": 1}
    slow = {"provider": "Fast INT8", "reason": "no node", "fix": "leave it out"}

    def try_fast(provider: str, paths: Any, batch: int, folder: Path) -> Any:
        candidate = Candidate("fp32", paths["fp32"], provider, lambda key, threads, _: open_model(key.path))
        return {candidate: kernels}, [slow]

    monkeypatch.setattr(stage, "asked_providers", lambda text: ["FastExecutionProvider"])
    monkeypatch.setattr(stage, "try_provider", try_fast)
    options = dataclasses.replace(OPTIONS, provider="fast", batches="1")
    report = benchmark(
        options, models["fp32"], models["int8"], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path
    )
    assert [(row["provider"], row["model"]) for row in report["latency"]] == [
        ("CPUExecutionProvider", "fp32"), ("CPUExecutionProvider", "int8"), ("FastExecutionProvider", "fp32"),
    ]  # fmt: skip
    assert report["latency"][2]["ran_as"] == kernels
    assert report["unavailable"] == [slow]
    assert [row["changed_answers"] for row in report["runtimes"]] == [0, 0, 0]
    assert load_report(tmp_path) == report
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Other providers and runtimes" in text
        assert "Fast FP32, batch 1: convolutions in 1 compiled subgraph; nodes 1 on Fast" in text
    print_summary(report)


def test_a_provider_that_was_asked_for_and_runs_nothing_is_an_error(
    models: dict[str, Path], dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = [{"provider": "Slow FP32", "reason": "no node", "fix": "leave it out"}]
    monkeypatch.setattr(stage, "asked_providers", lambda text: ["SlowExecutionProvider"])
    monkeypatch.setattr(stage, "try_provider", lambda *_: ({}, lacking))
    options = dataclasses.replace(OPTIONS, provider="slow")
    with pytest.raises(StageError, match="SlowExecutionProvider does not run the models: no node"):
        benchmark(options, models["fp32"], models["int8"], dataset, run_facts={}, torch_top1=None, out_dir=tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a CPU")
def test_a_share_of_the_machine_is_measured_and_checked_first(
    models: dict[str, Path], dataset: Any, tmp_path: Path
) -> None:
    before = os.sched_getaffinity(0)
    share = {"affinity": str(min(before)), "memory_limit": 2000, "seconds": 0.05, "batches": "1", "threads": "2"}

    def measure(**changed: Any) -> dict[str, Any]:
        options = BenchmarkConfig(**{**share, **changed})
        paths = models["fp32"], models["int8"]
        return benchmark(options, *paths, dataset, run_facts={}, torch_top1=None, out_dir=tmp_path)

    with pytest.raises(InputError, match="CPU 9999 is not available"):
        measure(affinity="9999")
    assert dataset.reads == []
    report = measure()
    assert os.sched_getaffinity(0) == before
    assert [row["cores"] for row in report["latency"]] == [1, 1]
    assert "2 threads on 1 core" in report["latency"][0]["trust"]["reasons"]
    if sys.platform == "linux":
        assert [row["within_limit"] for row in report["memory"]] == [True, True]


def test_the_package_imports_no_torch() -> None:
    import subprocess

    code = (
        "import sys, kdedge.benchmarks.measure, kdedge.benchmarks.host as host; host.doctor(); "
        "print([name for name in ('torch', 'onnx', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
