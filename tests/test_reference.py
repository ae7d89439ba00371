"""The reference is what today's code writes, its parts are of one model, and the README tells its numbers."""

import json
import re
from pathlib import Path

import numpy as np

from benchmarks.report import render_markdown
from benchmarks.report_file import load_report
from export.verify import verify_bundle
from pipeline.artifacts import file_sha256

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "artifacts" / "reference"
BUNDLE = REFERENCE / "bundle"
README = (ROOT / "README.md").read_text()


def test_the_reference_bundle_is_verified_and_passed():
    assert verify_bundle(BUNDLE)["passed"]


def test_the_reference_bundle_has_the_script_of_this_version():
    assert (BUNDLE / "predict.py").read_bytes() == (ROOT / "export" / "standalone.py").read_bytes()


def test_the_history_of_the_reference_bundle_is_of_the_model_in_it():
    history = json.loads((BUNDLE / "manifest.json").read_text())["facts"]["history"]["quantization"]
    candidates = json.loads((REFERENCE / "quantize" / "candidates.json").read_text())
    shipped = candidates["rungs"][-1]
    assert history["bytes"] == (BUNDLE / "student.int8.onnx").stat().st_size
    assert {key: history[key] for key in shipped} == shipped
    quantized = json.loads((REFERENCE / "quantize" / "manifest.json").read_text())["outputs"]
    assert file_sha256(BUNDLE / "student.int8.onnx") == quantized["student.int8.onnx"]


def test_the_reference_report_is_as_this_version_writes_it():
    report = load_report(REFERENCE / "benchmark" / "report.json")
    assert json.loads((BUNDLE / "report.json").read_text()) == report
    committed = (REFERENCE / "benchmark" / "report.md").read_text()
    assert _without_figures(committed) == _without_figures(render_markdown(report, []))


def test_the_readme_shows_what_the_reference_answers():
    """The golden logits of the INT8 model are what every CPU computes, so no model needs to run here."""
    logits = np.load(BUNDLE / "golden_int8_logits.npy").astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    labels = (BUNDLE / "labels.txt").read_text().split("\n")
    shown = re.findall(r"^    (\w+) +([\d.]+) %  \S+golden_inputs\.npy\[(\d+)\]$", README, flags=re.MULTILINE)
    assert len(shown) == 2
    for label, percent, index in shown:
        best = shares[int(index)].argmax()
        assert (label, percent) == (labels[best], f"{100 * shares[int(index), best]:.2f}")


def test_the_readme_has_the_numbers_of_the_reference():
    report = load_report(REFERENCE / "benchmark" / "report.json")
    accuracy, gate, size = report["accuracy"], report["gate"], report["size"]
    low, high = accuracy["onnx_int8_ci95_pct"]
    first = {row["model"]: row["p50_ms"] for row in report["latency"] if (row["batch"], row["threads"]) == (1, 1)}
    memory = {row["model"]: row["peak_rss_bytes"] for row in report["memory"]}
    for row in (
        f"| **{accuracy['onnx_int8_top1_pct']:.2f} %** ({low:.2f} to {high:.2f}) |",
        f"| FP32 top-1 | {accuracy['onnx_fp32_top1_pct']:.2f} % |",
        f"| {gate['loss_pp']:+.2f} ({gate['loss_lower95_pp']:+.2f} to {gate['loss_upper95_pp']:+.2f}) |",
        f"| {size['fp32_bytes']:,} / {size['int8_bytes']:,} bytes: {size['ratio']:.2f}× |",
        f"| {first['fp32']:.3f} / {first['int8']:.3f} ms: {first['fp32'] / first['int8']:.2f}× ",
        f"| peak memory of a process that only runs the INT8 model | {memory['int8'] / 1e6:.1f} MB |",
    ):
        assert row in README, row


def _without_figures(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line and not line.startswith("![")]
