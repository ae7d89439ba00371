"""The reference is what this version writes, and its parts are of one model; `tests/test_docs.py` has its numbers."""

import json
from pathlib import Path

import pytest

from kdedge.benchmarks.emulate.cpus import CPUS
from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.report.pages import render_markdown
from kdedge.export.bundle.verify import verify_bundle
from kdedge.files import file_sha256

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "artifacts" / "reference"
BUNDLE = REFERENCE / "bundle"
STANDALONE = ROOT / "export" / "bundle" / "standalone.py"
BUNDLES = [BUNDLE, *(file.parent for file in sorted((REFERENCE / "front").glob("*/manifest.json")))]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_published_bundle_is_verified_and_passed(bundle: Path):
    assert verify_bundle(bundle)["passed"]
    assert load_report(bundle)["gate"]["verdict"] == "passed"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_published_bundle_has_the_script_of_this_version(bundle: Path):
    assert (bundle / "predict.py").read_bytes() == STANDALONE.read_bytes(), "run: make docs-generate"


def test_the_history_of_the_reference_bundle_is_of_the_model_in_it():
    history = json.loads((BUNDLE / "manifest.json").read_text())["facts"]["history"]["quantization"]
    candidates = json.loads((REFERENCE / "quantize" / "candidates.json").read_text())
    shipped = candidates["rungs"][-1]
    assert history["bytes"] == (BUNDLE / "student.int8.onnx").stat().st_size
    assert {key: history[key] for key in shipped} == shipped
    quantized = json.loads((REFERENCE / "quantize" / "manifest.json").read_text())["outputs"]
    assert file_sha256(BUNDLE / "student.int8.onnx") == quantized["student.int8.onnx"]


def test_the_emulated_measurement_is_of_the_model_in_the_bundle():
    measured = json.loads((REFERENCE / "portability" / "verify.json").read_text())["emulated"]
    assert [row["cpu"] for row in measured] == list(CPUS)
    for row in measured:
        assert row["model_sha256"] == file_sha256(BUNDLE / "student.int8.onnx")
        assert row["test_images"] >= 1000
        assert row["flips"] == 0


def test_the_reference_report_is_as_this_version_writes_it():
    report = load_report(REFERENCE / "benchmark" / "report.json")
    assert json.loads((BUNDLE / "report.json").read_text()) == report
    committed = (REFERENCE / "benchmark" / "report.md").read_text()
    assert _without_figures(committed) == _without_figures(render_markdown(report, [])), "run: make docs-generate"


def _without_figures(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line and not line.startswith("![")]
