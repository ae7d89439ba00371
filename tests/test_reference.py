"""The reference is what today's code writes, its parts are of one model, and the README tells its numbers."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
from studies import read

from benchmarks.report import render_markdown
from benchmarks.report_file import load_report
from export.verify import verify_bundle
from pipeline.files import file_sha256

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


COMPARE = REFERENCE / "compare"


def test_the_readme_has_the_numbers_of_the_methods_with_three_seeds():
    cells = read(COMPARE / "h200" / "evaluation_results.csv")
    for method in dict.fromkeys(cell["method"] for cell in cells):
        row = [f"`{method}`"]
        for epochs in ("20", "40"):
            val, int8 = (_by_seed(cells, method, epochs, column) for column in (_VAL, _INT8))
            assert len(val) in (0, 3)
            gain = _paired(int8, _by_seed(cells, "kd", epochs, _INT8)) if val and method != "kd" else ""
            row += [f"{_mean(val)} %", f"{_mean(int8)} %", gain] if val else [""] * 3
        assert f"| {' | '.join(row)} |" in README, row
    source = read(COMPARE / "h200-source" / "evaluation_results.csv")
    for method in dict.fromkeys(cell["method"] for cell in source):
        val, int8 = (_by_seed(source, method, "20", column) for column in (_VAL, _INT8))
        gain = _paired(int8, _by_seed(source, "kd", "20", _INT8)) if method != "kd" else ""
        end = f" | {_mean(val)} % | {_mean(int8)} % | {gain} |"
        assert any(line.startswith(f"| `{method}`") and line.endswith(end) for line in README.splitlines()), end


def test_the_readme_has_the_numbers_of_the_teachers():
    xeon, h200 = "20-epochs-lr-0.1", "h200"
    for teacher, *studies in (
        ("none: `ce` instead", (xeon, "ce", "20"), None, (h200, "ce", "40")),
        ("91.0 %", (xeon, "kd", "20"), (xeon, "selective", "20"), None),
        ("94.0 %", ("teacher-41", "kd", "20"), ("teacher-41", "selective", "20"), ("teacher-41", "kd", "40")),
        ("95.6 %", (h200, "kd", "20"), (h200, "selective", "20"), (h200, "kd", "40")),
    ):
        expected = ""
        for study in studies:
            expected += " |"
            if study:
                folder, method, epochs = study
                values = _by_seed(read(COMPARE / folder / "evaluation_results.csv"), method, epochs, _INT8)
                expected += f" {_mean(values)} %" if len(values) == 3 else f" {values['0']:.2f} % (seed 0)"
        (row,) = [line for line in README.splitlines() if line.startswith(f"| {teacher} |")]
        assert row.replace("**", "").endswith(f"{expected} |"), (row, expected)


def test_the_readme_has_the_numbers_of_the_small_budget():
    small = [
        {cell["method"]: float(cell["val_top1_pct"]) for cell in read(COMPARE / folder / "evaluation_results.csv")}
        for folder in ("10k-10epochs-all", "10k-10epochs-source")
    ]
    for method, today in small[0].items():
        source = small[1].get(method)
        cells = [f"`{method}`", f"{today:.2f} %", _gain(small[0], method, "ce"), _gain(small[0], method, "kd")]
        cells += [f"{source:.2f} %" if source else "", _gain(small[1], method, "ce")]
        assert f"| {' | '.join(cells)} |" in README, cells


_VAL, _INT8 = "val_top1_pct", "int8_test_top1_pct"


def _by_seed(cells: list[dict[str, str]], method: str, epochs: str, column: str) -> dict[str, float]:
    chosen = [cell for cell in cells if (cell["method"], cell["epochs"]) == (method, epochs)]
    return {cell["seed"]: float(cell[column]) for cell in chosen}


def _mean(values: dict[str, float]) -> str:
    return f"{statistics.fmean(values.values()):.2f} ± {statistics.stdev(values.values()):.2f}"


def _paired(values: dict[str, float], others: dict[str, float]) -> str:
    """Return the mean difference of three seeds with its 95 % Student interval."""
    differences = [values[seed] - others[seed] for seed in values]
    half = 4.302653 * statistics.stdev(differences) / 3**0.5
    return f"{statistics.fmean(differences):+.2f} ± {half:.2f}"


def _gain(tops: dict[str, float], method: str, to: str) -> str:
    shown = method in tops and method not in ("ce", to)
    return f"{tops[method] - tops[to]:+.2f} pp" if shown else ""


def _without_figures(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line and not line.startswith("![")]
