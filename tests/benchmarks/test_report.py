"""The sections of the report that need what only some runs know, as HTML and as Markdown."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.benchmarks import stability
from kdedge.benchmarks.accuracy import answer_changes
from kdedge.benchmarks.report.details import starts_from
from kdedge.benchmarks.report.pages import print_summary, render_html, render_markdown
from kdedge.benchmarks.report.quantization_figures import paint_candidates
from kdedge.benchmarks.stability import NOISY, Doubt

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
    summary = "14 of 10,000: 7 from right to wrong, 5 from wrong to right, 2 from one wrong class to another."
    assert summary in html.replace(" ,", ",")
    assert summary in markdown
    assert "7 cat cat dog|wolf lost 5 cat dog|wolf cat won 2 cat dog|wolf frog neither" in html
    assert "| 5 | cat | dog\\|wolf | cat | won |" in markdown
    assert "rarer changes" not in html + markdown


def test_many_answer_changes_are_cut_and_counted() -> None:
    rows = [{"label": "a", "fp32": "a", "int8": f"b{number}", "count": 1} for number in range(27)]
    for text in texts(answer_changes=rows):
        assert "27 of 10,000" in text
        assert "b7" in text
        assert "b8" not in text
        assert "19 more images in rarer changes" in text


def test_no_change_is_said_and_not_knowing_is_not() -> None:
    for text in texts(answer_changes=[]):
        assert "0 of 10,000: 0 from right to wrong" in text
        assert "image shows" not in text
    for text in texts():
        assert "Predictions that INT8 changes" not in text


def test_portability_and_commands_are_shown_where_they_are_known() -> None:
    record = json.loads((REFERENCE / "portability" / "verify.json").read_text())
    record["emulated"][1] |= {"flips": 55, "max_abs_diff": 3.8412}
    run = {**REPORT["run"], "commands": ["kdedge run-all --out RUN --data 'folder:<my images>'"]}
    html, markdown = texts(portability=record, run=run)
    assert "haswell 1,016 0 0 (identical) 1.32.0 cortex-a76 1,016 55 3.84 1.27.0" in html
    assert "| cortex-a76 | 1,016 | 55 | 3.84 | 1.27.0 |" in markdown
    assert "kdedge run-all --out RUN --data &#39;folder:&lt;my images&gt;&#39;" in html
    assert "    kdedge run-all --out RUN --data 'folder:<my images>'\n" in markdown
    assert "left out" not in html + markdown
    for text in texts(run={**run, "commands_lack_paths": True}):
        assert "Paths of the machine that ran it are left out" in text
    for text in texts():
        assert "other CPUs" not in text
        assert "Commands" not in text


def test_the_table_of_latencies_has_the_percentiles_that_were_measured_and_the_stability_next_to_the_median() -> None:
    row = {**REPORT["latency"][0], "p90_ms": None, "p95_ms": 1.234, "p99_ms": None}
    noisy = {**row, "p95_ms": None, "trust": {"verdict": "noisy: do not quote", "reasons": ["load of 42 %"]}}
    _, markdown = texts(latency=[row, noisy])
    assert "| p50 ms | trust | p95 ms | images/s |" in markdown
    assert "| 1.006 | steady | 1.234 |" in markdown
    assert "| 1.006 | noisy | – |" in markdown
    assert "load of 42 %" in markdown
    counted = f"{row['samples']:,}"
    assert f"| {counted} |" in markdown
    measured_on, longer = ({**row, "window_p50_ms": [1.0] * 5, "earlier_windows": count} for count in (3, 7))
    said = "* the last 5 windows of {}; the disturbed ones before them do not count"
    for rows, windows in (([row, measured_on], "8"), ([longer, measured_on], "8 to 12")):
        html, markdown = texts(latency=rows)
        assert f"| {counted}* |" in markdown
        assert said.format(windows) in html
        assert "\n\\" + said.format(windows) in markdown
    assert "windows of" not in texts(latency=[row])[1]
    old = {key: value for key, value in row.items() if key != "p95_ms"}
    assert "| p50 ms | trust | images/s |" in texts(latency=[old])[1]


def test_a_ratio_of_latencies_is_only_given_where_both_are_steady() -> None:
    noisy = {"verdict": "noisy: do not quote", "reasons": ["load of 42 %"]}
    fp32, int8, *_ = REPORT["latency"]
    for text in texts(latency=[fp32, int8]):
        assert "× as fast as FP32" in text
    for rows in ([{**fp32, "trust": noisy}, int8], [fp32, {**int8, "trust": noisy}]):
        for text in texts(latency=rows):
            assert "× as fast" not in text
            assert "0.285 ms, not compared with FP32 (CPU, batch 1, 1 thread; noisy: do not quote)" in text


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
        assert "INT8: peak 67.20 MB, of which 53.00 MB before the model is loaded" in text
        assert "does not fit into 64 MiB of heap and buffers (killed)" in text
        assert "FP32: unknown, this system does not tell" in text
        assert "67.20 MB peak in a process that only runs it" in text
    assert "Memory of a process" not in "".join(texts())


def test_an_accelerator_tells_in_what_arithmetic_it_ran() -> None:
    ran_as = {"convs": {"float": 5}, "nodes_by_provider": {"CPUExecutionProvider": 2, "CUDAExecutionProvider": 9}}
    row = {**REPORT["latency"][1], "provider": "CUDAExecutionProvider", "model": "int8", "batch": 8, "ran_as": ran_as}
    expected = "CUDA INT8, batch 8: convolutions 5 float; nodes 2 on CPU, 9 on CUDA"
    heat = {"verdict": NOISY, "reasons": ["heat"]}
    rows = [REPORT["latency"][0], {**row, "on_device": {"p50_ms": 0.1234, "trust": heat}}]
    for text in texts(latency=rows):
        assert f"{expected}; p50 without copies 0.123 ms (noisy: do not quote)" in text
        assert "heat (in 1 of 3 measurements)" in text


def test_each_doubt_is_shown_once_with_its_worst_number() -> None:
    rows = [
        {**REPORT["latency"][0], "trust": noisy([Doubt("spread", spread, 10), Doubt("samples", samples, 50)])}
        for spread, samples in ((104.4, 40), (99.9, 7))
    ]
    for text in texts(latency=[*rows, REPORT["latency"][0]]):
        assert "differ by 104.4 % (at most 10 %) (the worst of 2 of 3 measurements)" in text
        assert "only 7 samples (at least 50): raise --latency-seconds (the worst of 2 of 3 measurements)" in text
        assert "99.9 %" not in text
        assert "only 40" not in text


def test_other_words_name_the_same_worst_case(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {kind: (f"{kind} = {{value:.0f}}", less) for kind, (_, less) in stability._SENTENCES.items()}
    monkeypatch.setattr(stability, "_SENTENCES", words)
    rows = [{**REPORT["latency"][0], "trust": noisy([Doubt(kind, value, 10) for kind in words])} for value in (4, 40)]
    for text in texts(latency=rows):
        for kind, (_, less_is_worse) in words.items():
            assert f"{kind} = {4 if less_is_worse else 40} (the worst of 2" in text


def test_reports_without_doubts_list_their_reasons_as_they_are() -> None:
    reasons = ["windows differ by 12 % (at most 10 %)", "windows differ by 15 % (at most 10 %)"]
    rows = [{**REPORT["latency"][0], "trust": {"verdict": NOISY, "reasons": [reason]}} for reason in reasons]
    for text in texts(latency=rows):
        for reason in reasons:
            assert f"{reason} (in 1 of 2 measurements)" in text


def noisy(doubts: list[Doubt]) -> dict[str, Any]:
    given = [dataclasses.asdict(doubt) for doubt in doubts]
    return {"verdict": NOISY, "doubts": given, "reasons": [doubt.sentence for doubt in doubts]}


def test_answers_that_differ_elsewhere_are_said_in_front_and_in_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    row = json.loads((REFERENCE / "portability" / "verify.json").read_text())["emulated"][0]
    rows = [
        {**row, "cpu": "haswell", "images": 1000, "flips": 0},
        {**row, "cpu": "cortex-a76", "images": 1000, "flips": 55},
        {**row, "cpu": "cortex-a72", "images": 1000, "flips": 3},
    ]
    said = "not portable: 55 of 1,000 predictions differ on cortex-a76, 3 of 1,000 predictions differ on cortex-a72"
    same = "the same 1,000 predictions on haswell (emulated)"
    for text in texts(portability={"emulated": rows}):
        assert text.index("INT8 is " + said) < text.index(same) < text.index("Accuracy")
    print_summary({**REPORT, "portability": {"emulated": rows}})
    summary = " ".join(capsys.readouterr().out.split())
    assert summary.index(said) < summary.index(same)
    for portability in (None, {"emulated": rows[:1]}):
        print_summary({**REPORT, "portability": portability})
        shown = [*texts(portability=portability), " ".join(capsys.readouterr().out.split())]
        for text in shown:
            assert "not portable" not in text
            assert (same in text) is bool(portability)


def test_other_test_images_are_said_in_front_and_in_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    said = "The test data differ from those of the bundle: do not compare accuracies"
    for same in (False, True, None):
        run = {**REPORT["run"], "same_test_images": same}
        print_summary({**REPORT, "run": run})
        for text in (*texts(run=run), " ".join(capsys.readouterr().out.split())):
            assert (said in text) is (same is False)
            assert said not in text or text.index(said) < text.index("INT8 top-1")


def test_a_larger_int8_file_is_not_called_smaller() -> None:
    for text in texts(size={"fp32_bytes": 2784, "int8_bytes": 7152, "ratio": 0.3893}):
        assert "7.2 kB, 2.57× larger than FP32" in text
        assert "7,152 bytes, 2.57× larger than FP32 with 2,784 bytes." in text


def test_every_accuracy_has_its_interval() -> None:
    accuracy = {**REPORT["accuracy"], "n": 100, "torch_fp32_top1_pct": 90.0}
    _, markdown = texts(teacher={**REPORT["teacher"], "test_top1_pct": 80.0}, accuracy=accuracy)
    # Wilson's formula by hand, with z = 1.959964, for 80 and for 90 right answers of 100.
    assert "| teacher resnet18 (PyTorch) | 80.00 % | 71.12 to 86.66 |" in markdown
    assert "| student FP32 (PyTorch) | 90.00 % | 82.56 to 94.48 |" in markdown


def test_a_student_of_given_weights_tells_where_it_starts() -> None:
    begun = {**REPORT["student"], "epochs": 0, "weights_sha256": ["ab0dc3c4" * 8, "1b97d780" * 8]}
    _, markdown = texts(student=begun, teacher={**REPORT["teacher"], "weights": "file:" + "bc790ce4" * 8})
    assert "| student starts from | mean of 2 students (ab0dc3c4, 1b97d780) |" in markdown
    assert "| epochs in this run | 0 |" in markdown
    assert "| teacher's initial weights | file:bc790ce4 |" in markdown
    assert starts_from({"weights_sha256": ["ab0dc3c4" * 8]}) == "a student (ab0dc3c4)"
    pruned = {"from": [32, 64], "widths": [16, 48], "by": "taylor"}
    assert starts_from({"weights_sha256": ["ab0dc3c4" * 8], "pruned": pruned}) == (
        "channels 16-48, pruned by taylor from 32-64 of a student (ab0dc3c4)"
    )
    assert starts_from({"weights_sha256": ["ab0dc3c4" * 8], "pruned": {**pruned, "by": "scratch"}}) == (
        "untrained weights, with the channels 16-48 to which 32-64 of a student would be pruned"
    )
    for unknown in ([], None):
        markdown = texts(student={**begun, "weights_sha256": unknown})[1]
        assert "starts from" not in markdown
        assert "| epochs | 0 |" in markdown


def test_operators_in_float_are_counted_by_reason() -> None:
    rows = [{"name": str(index), "type": "Mul", "reason": "a | b"} for index in range(3)]
    html, markdown = texts(quantization={"float_operators": rows})
    assert "in float operator reason 3 Mul a | b" in html
    assert "| 3 | Mul | a \\| b |" in markdown
    assert "| in float |" not in texts()[1]


def test_how_it_was_measured_is_said() -> None:
    settings = {"seconds": 1.5, "affinity": "0", "spinning": True}
    rows = [{**row, "cores": 1, "window_p50_ms": [1.0] * 5} for row in REPORT["latency"]]
    _, markdown = texts(latency=rows, benchmark=settings)
    for line in ("time for each latency | 1.5 s, in 5 windows", "bound to CPUs | 0", "usable cores | 1",
                 "waiting threads | spin (--latency-spinning)"):  # fmt: skip
        assert f"| {line} |" in markdown
    _, markdown = texts(latency=rows, benchmark={**settings, "affinity": "", "spinning": False})
    assert "| Measurement | |" in markdown
    assert "bound to CPUs" not in markdown
    assert "spin" not in markdown
    assert "Measurement" not in "".join(texts())  # an older report, which does not tell


@pytest.mark.parametrize(
    ("problem", "said"),
    [("no provider", "not available: no provider"), (None, "available")],
)
def test_tensorrt_is_said_to_be_there_or_not(problem: str | None, said: str) -> None:
    assert f"| TensorRT | {said} |" in texts(host={**REPORT["host"], "tensorrt_problem": problem})[1]
    assert "TensorRT" not in texts()[1]


def quantization(**changed: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((REFERENCE / "quantize" / "candidates.json").read_text())
    return {**record, **changed}


def test_the_shipped_model_is_told_apart_from_the_choice_of_the_search() -> None:
    search, final = quantization()["rungs"][:2]  # of the reference, which did not take the second
    record = quantization(rung=final["rung"], rungs=[search, final])
    for text in texts(quantization=record):
        assert f"chose {record['chosen']} for the target portable: loss {search['loss_pp']:+.2f} pp" in text
        shipped = f"The shipped model is after bias correction: loss {final['loss_pp']:+.2f} pp"
        assert text.index(shipped) < text.index(f"SQNR of the logits {final['sqnr_db']:.1f} dB")
        assert "5,000 validation images" in text
    assert "| repair step after the search | bias correction |" in texts(quantization=record)[1]
    for text in texts(quantization=quantization(rung="search", rungs=[search])):
        assert "The shipped model" not in text
        assert re.search(r"repair step after the search \W*none", text)
    for text in texts(quantization=quantization(rungs=[search, final, search])):
        assert "The shipped model" not in text
        assert f"Tried and not kept: bias correction: loss {final['loss_pp']:+.2f} pp" in text


@pytest.mark.parametrize(
    ("rung", "label"), [("search", "chosen"), ("fine-tuning", "chosen format,\nbefore fine-tuning")]
)
def test_the_figure_of_the_search_rings_what_was_chosen_before_the_ladder(rung: str, label: str) -> None:
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    paint_candidates(axes, quantization(rung=rung))
    assert label in axes.get_legend_handles_labels()[1]
    assert axes.get_xlabel().endswith("of the quantizing host")
