"""The sections of the report that need what only some runs know, as HTML and as Markdown."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import answer_changes
from benchmarks.report import print_summary, render_html, render_markdown

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
REPORT: dict[str, Any] = json.loads((REFERENCE / "benchmark-vnni" / "report.json").read_text())


def texts(**more: Any) -> tuple[str, str]:
    """Return the reference report with more keys as the text of its HTML, and as Markdown."""
    report = {**copy.deepcopy(REPORT), **more}
    body = render_html(report, []).partition("<body>")[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)), render_markdown(report, [])


def test_answer_changes_count_what_became_what() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    fp32 = np.array([0, 0, 0, 1, 2, 0, 2, 0])
    int8 = np.array([1, 1, 0, 1, 1, 1, 2, 1])
    rows = answer_changes(labels, fp32, int8, ("a", "b", "c"))
    assert rows == [
        {"label": "a", "fp32": "a", "int8": "b", "count": 2},
        {"label": "c", "fp32": "a", "int8": "b", "count": 2},
        {"label": "b", "fp32": "c", "int8": "b", "count": 1},
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert answer_changes(labels, fp32, fp32, ("a", "b", "c")) == []


def test_answer_changes_are_shown_with_their_effect() -> None:
    rows = [
        {"label": "cat", "fp32": "cat", "int8": "dog|wolf", "count": 7},
        {"label": "cat", "fp32": "dog|wolf", "int8": "cat", "count": 5},
        {"label": "cat", "fp32": "dog|wolf", "int8": "frog", "count": 2},
    ]
    html, markdown = texts(answer_changes=rows)
    summary = "14 of 10,000: 7 from right to wrong, 5 from wrong to right, 2 from one wrong answer to another."
    assert summary in html.replace(" ,", ",")
    assert summary in markdown
    assert "7 cat cat dog|wolf lost 5 cat dog|wolf cat won 2 cat dog|wolf frog neither" in html
    assert "| 5 | cat | dog\\|wolf | cat | won |" in markdown
    assert "rarer changes" not in html + markdown


def test_many_answer_changes_are_cut_and_counted() -> None:
    rows = [{"label": "a", "fp32": "a", "int8": f"b{number}", "count": 1} for number in range(27)]
    for text in texts(answer_changes=rows):
        assert "27 of 10,000" in text
        assert "b19" in text
        assert "b20" not in text
        assert "7 more images in rarer changes" in text


def test_no_change_is_said_and_not_knowing_is_not() -> None:
    for text in texts(answer_changes=[]):
        assert "0 of 10,000: 0 from right to wrong" in text
        assert "image shows" not in text
    for text in texts():
        assert "Which answers INT8 changed" not in text


def test_portability_and_commands_are_shown_where_they_are_known() -> None:
    record = json.loads((REFERENCE / "portability" / "verify.json").read_text())
    record["emulated"][1] |= {"flips": 55, "max_abs_diff": 3.8412}
    run = {**REPORT["run"], "commands": ["kdedge run-all --out RUN --data 'folder:<my images>'"]}
    html, markdown = texts(portability=record, run=run)
    assert "haswell 1,016 0 0 (identical) 1.32.0 cortex-a76 1,016 55 3.84 1.27.0" in html
    assert "| cortex-a76 | 1,016 | 55 | 3.84 | 1.27.0 |" in markdown
    assert "kdedge run-all --out RUN --data &#39;folder:&lt;my images&gt;&#39;" in html
    assert "    kdedge run-all --out RUN --data 'folder:<my images>'\n" in markdown
    for text in texts():
        assert "other CPUs" not in text
        assert "Commands" not in text


def test_the_table_of_latencies_has_the_percentiles_that_were_measured_and_the_trust_beside_the_median() -> None:
    row = {**REPORT["latency"][0], "p90_ms": None, "p95_ms": 1.234, "p99_ms": None}
    noisy = {**row, "p95_ms": None, "trust": {"verdict": "noisy: do not quote", "reasons": ["load of 42 %"]}}
    _, markdown = texts(latency=[row, noisy])
    assert "| p50 ms | trust | p95 ms | images/s |" in markdown
    assert "| 1.006 | steady | 1.234 |" in markdown
    assert "| 1.006 | noisy | – |" in markdown
    assert "load of 42 %" in markdown
    counted = f"{row['samples']:,}"
    assert f"| {counted} |" in markdown
    measured_on = {**row, "window_p50_ms": [1.0] * 5, "earlier_windows": 3}
    assert f"| {counted} (last 5 of 8 windows) |" in texts(latency=[measured_on])[1]
    old = {key: value for key, value in row.items() if key != "p95_ms"}
    assert "| p50 ms | trust | images/s |" in texts(latency=[old])[1]


@pytest.mark.parametrize("verdict", ["passed", "failed", "undecided"])
def test_the_verdict_is_a_sentence_in_front_of_everything(verdict: str) -> None:
    html, markdown = texts(gate={**REPORT["gate"], "verdict": verdict, "reason": "Because."})
    assert html.split(":")[0].strip().lower() == verdict
    assert html.index("Because.") < html.index("Accuracy")
    assert markdown.lower().startswith(f"# {verdict}: ")


def test_memory_is_shown_with_its_limit_or_why_it_is_unknown() -> None:
    known = {
        "model": "int8", "provider": "CPUExecutionProvider", "batch": 1, "threads": 1, "peak_rss_bytes": 67_200_000,
        "baseline_bytes": 53_000_000, "reason": None, "limit_mib": 64, "within_limit": False, "limit_reason": "killed",
    }  # fmt: skip
    unknown = {**known, "model": "fp32", "peak_rss_bytes": None, "reason": "this system does not tell"}
    for text in texts(memory=[known, unknown]):
        assert "INT8: 67.20 MB at most, 53.00 MB of them before the model is loaded" in text
        assert "does not keep within 64 MiB of heap and buffers (killed)" in text
        assert "FP32: unknown, this system does not tell" in text
        assert "67.20 MB at most in a process that only runs it" in text
    assert "Memory of a process" not in "".join(texts())


def test_an_accelerator_tells_in_what_arithmetic_it_ran() -> None:
    ran_as = {"convs": {"float": 5}, "nodes_by_provider": {"CPUExecutionProvider": 2, "CUDAExecutionProvider": 9}}
    row = {**REPORT["latency"][1], "provider": "CUDAExecutionProvider", "model": "int8", "batch": 8, "ran_as": ran_as}
    expected = "CUDA INT8, batch 8: convolutions 5 float; nodes 2 on CPU, 9 on CUDA"
    for text in texts(latency=[*REPORT["latency"], {**row, "on_device": {"p50_ms": 0.1234}}]):
        assert f"{expected}; p50 without copies 0.123 ms" in text


def test_answers_that_differ_elsewhere_are_said_in_front_and_in_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    row = json.loads((REFERENCE / "portability" / "verify.json").read_text())["emulated"][0]
    rows = [
        {**row, "cpu": "haswell", "images": 1000, "flips": 0},
        {**row, "cpu": "cortex-a76", "images": 1000, "flips": 55},
        {**row, "cpu": "cortex-a72", "images": 1000, "flips": 3},
    ]
    said = "not portable: 55 of 1,000 answers differ on cortex-a76, 3 of 1,000 answers differ on cortex-a72"
    same = "the same 1,000 answers on haswell (emulated)"
    for text in texts(portability={"emulated": rows}):
        assert text.index(said) < text.index(same) < text.index("Accuracy")
    print_summary({**REPORT, "portability": {"emulated": rows}})
    summary = " ".join(capsys.readouterr().out.split())
    assert summary.index(said) < summary.index(same)
    for portability in (None, {"emulated": rows[:1]}):
        print_summary({**REPORT, "portability": portability})
        shown = [*texts(portability=portability), " ".join(capsys.readouterr().out.split())]
        for text in shown:
            assert "not portable" not in text
            assert (same in text) is bool(portability)
