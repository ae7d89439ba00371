"""The whole stage on a tiny network: the contract of report.json, and the pages made from it."""

import dataclasses
import io
import json
import os
import re
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from rich.console import Console

from kdedge.benchmarks import measure as stage
from kdedge.benchmarks.interval import wilson_interval_pct
from kdedge.benchmarks.measure import run_benchmark
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.benchmarks.report import figures
from kdedge.benchmarks.report.file import load_report
from kdedge.benchmarks.report.pages import print_summary, render_html, render_markdown
from kdedge.errors import InputError, StageError
from kdedge.inputs import image_input

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
TRAINING = [
    {"epoch": "1", "train_loss": "2.5", "train_kd": "1.9", "train_hint": "1.0", "train_ce": "2.2", "beta": "250",
     "val_top1_pct": "31.5", "cosine_similarity": "0.41"},
    {"epoch": "2", "train_loss": "1.5", "train_kd": "0.9", "train_hint": "0.7", "train_ce": "1.2", "beta": "125",
     "val_top1_pct": "55.0", "cosine_similarity": "0.52"},
    {"epoch": "3", "train_loss": "1.1", "train_kd": "", "train_hint": "nan", "train_ce": "1.0", "beta": "125",
     "val_top1_pct": "61.0", "cosine_similarity": ""},
]  # fmt: skip
FACTS = {
    "run": {"preset": "default", "data": "made-up", "seed": 3, "wall_s": 4000.0, "extra": "kept"},
    "teacher": {"arch": "resnet18", "params": 11_173_962, "weights": "none"},
    "student": {"arch": "lite", "params": 1_290_000, "macs": 115_000_000, "method": "selective", "epochs": 3},
    "training": TRAINING,
}
benchmark = partial(run_benchmark, images_sha256="1" * 64)
OPTIONS = BenchmarkConfig(seconds=0.05, batches="1,2")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path], labelled: Any
) -> tuple[dict[str, Any], Path]:
    """Run the stage once, with everything that it can be given."""
    out = tmp_path_factory.mktemp("benchmark")
    dataset = TestImages(labelled.images[:120], labelled.labels[:120])
    seen = []

    def torch_top1(split: Any) -> dict[str, float | None]:
        seen.append(split)
        return {"teacher_test_top1_pct": 77.5, "torch_fp32_top1_pct": 25.0}

    report = benchmark(
        OPTIONS, models["fp32"], models["int8"], dataset, run_facts=FACTS, torch_top1=torch_top1, out_dir=out
    )
    assert dataset.reads == 1
    assert [len(split.labels) for split in seen] == [120]
    return report, out


class TestImages:
    """A data set with test images only; reading anything else fails."""

    __test__ = False
    name = "made-up"
    class_names = ("cat", "dog | wolf", "<b>frog</b>", "ship")
    spec = image_input(16)

    def __init__(self, images: Any, labels: Any) -> None:
        from kdedge.dataset import Split

        self._split, self.reads = Split(images, labels), 0

    def test(self) -> Any:
        self.reads += 1
        return self._split


def test_report_keeps_the_contract(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    assert json.loads((out / "report.json").read_text()) == report
    assert report["schema"] == 1
    for section, keys in CONTRACT.items():
        assert keys <= report[section].keys(), section
    assert (report["accuracy"]["images_sha256"], report["accuracy"]["image_size"]) == ("1" * 64, 16)
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


class Page(HTMLParser):
    """Checks that tags are balanced and collects addresses and text."""

    VOID = frozenset({"meta", "img", "br", "source", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "srcset", "href", "data"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_is_one_file_with_the_verdict_first(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    html = (out / "report.html").read_text()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert len(page.addresses) == 12
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    without_images = re.sub(r"data:image/png;base64,[^\"]*", "", html)
    assert not re.search(r"https?:|//\w|@import|url\(|<script", without_images)
    body = html[html.index("<body>") :]
    assert body.index("Undecided") < body.index(report["gate"]["reason"][:20]) < body.index("<h2>")
    # Class names are the user's and must not become markup.
    assert "&lt;b&gt;frog&lt;/b&gt;" in body
    assert "<b>frog" not in body
    for word in ("prefers-color-scheme: dark", "@media print", 'name="viewport"'):
        assert word in html


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


def test_the_first_lines_name_model_data_and_classes(
    finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = finished
    subject = "lite on made-up, 4 classes: cat, dog | wolf, <b>frog</b>, ship"
    assert (out / "report.md").read_text().splitlines()[2] == subject
    html = (out / "report.html").read_text()
    assert html.index("lite on made-up, 4 classes: cat") < html.index("<h2>")
    print_summary(report)
    assert capsys.readouterr().out.splitlines()[1] == subject
    classes = [{**report["per_class"][0], "class": f"c{number}"} for number in range(6)]
    assert "6 classes: c0, c1, c2, c3 and 2 more" in render_markdown({**report, "per_class": classes}, [])


def test_markdown_tables_are_whole(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    text = (out / "report.md").read_text()
    assert text.startswith("# Undecided")
    assert report["gate"]["reason"] in text
    assert "dog \\| wolf" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert all((out / name).is_file() for name in re.findall(r"\]\((.+?)\)", text))


def test_summary_fits_80_columns(finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = finished
    print_summary(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Undecided")
    assert max(map(len, lines)) <= 80
    assert any("INT8 top-1" in line for line in lines)
    assert any("CUDA not measured" in line for line in lines) == bool(report["unavailable"])


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


def test_accuracy_stands_beside_the_constant_answer(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    accuracy = report["accuracy"]
    most = max(report["per_class"], key=lambda row: row["n"])
    assert (accuracy["majority_class"], accuracy["majority_pct"]) == (most["class"], round(100 * most["n"] / 120, 4))
    recalls = [row["int8_top1_pct"] for row in report["per_class"]]
    assert accuracy["balanced_pct"] == pytest.approx(sum(recalls) / 4, abs=1e-3)
    text = (out / "report.md").read_text()
    assert text.index("| INT8 top-1 |") < text.index("| always `") < text.index("| FP32 top-1 |")


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


def test_a_class_that_is_hardly_ever_recognised_is_named_on_top(
    finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row} for row in finished[0]["per_class"]]
    assert "Hardly ever recognised" not in render_markdown(finished[0], [])
    rows[1] |= {"n": 17, "int8_top1_pct": 5.8824}
    rows[3] |= {"n": 13, "int8_top1_pct": 0.0}
    report = {**finished[0], "per_class": rows}
    print_summary(report)
    for text in (capsys.readouterr().out, render_markdown(report, []), render_html(report, [])):
        head = " ".join(text.split("INT8 top-1")[0].split())
        assert "Hardly ever recognised: ship (0 of 13), dog | wolf (1 of 17)" in head


def test_a_gate_that_failed_for_another_reason_than_a_loss_says_so(finished: tuple[dict[str, Any], Path]) -> None:
    for cause, headline in (
        ("learned", "Failed: the model has learned nothing"), ("gain", "Failed: INT8 does not follow FP32"),
    ):  # fmt: skip
        gate = {**finished[0]["gate"], "verdict": "failed", "passed": False, "cause": cause}
        assert render_markdown({**finished[0], "gate": gate}, []).startswith(f"# {headline}\n")


@pytest.mark.parametrize(
    ("noisy", "title"),
    [((), ""), ((1,), "red numbers are noisy: do not quote"), ((0, 1, 2, 3), "noisy: do not quote")],
)
def test_a_noisy_cell_does_not_mark_the_whole_figure(
    finished: tuple[dict[str, Any], Path], noisy: tuple[int, ...], title: str
) -> None:
    verdicts = ["noisy: do not quote" if index in noisy else "steady" for index in range(4)]
    rows = [
        {**row, "trust": {"verdict": verdict}} for row, verdict in zip(finished[0]["latency"], verdicts, strict=True)
    ]
    axes = Figure().subplots()
    figures._latency(axes, rows)
    assert axes.get_title(loc="left") == title
    # Numbers over the bars are drawn model by model.
    drawn = sorted(range(4), key=lambda index: rows[index]["model"] != rows[0]["model"])
    assert {index for index, text in zip(drawn, axes.texts, strict=True) if text.get_color() != "black"} == set(noisy)


@pytest.mark.parametrize(("verdict", "headline"), [("passed", "Passed: "), ("failed", "Failed: ")])
def test_other_verdicts(finished: tuple[dict[str, Any], Path], verdict: str, headline: str) -> None:
    report = {**finished[0], "gate": {**finished[0]["gate"], "verdict": verdict, "passed": verdict == "passed"}}
    buffer = io.StringIO()
    print_summary(report, Console(file=buffer, width=80))
    assert buffer.getvalue().startswith(headline)
    assert f"<h1>{headline}" in render_html(report, [])
    assert render_markdown(report, []).startswith(f"# {headline}")


@pytest.mark.filterwarnings("error")
def test_a_class_name_that_the_font_lacks_is_drawn_as_its_number(
    finished: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = finished[0]["per_class"][0]
    classes = [{**row, "class": "Äpfel"}, {**row, "class": "梨", "n": 0}, {**row, "class": "りんご"}]
    drawn: list[str] = []
    paint = figures._accuracies

    def spy(axes: Any, rows: Any, plural: str) -> None:
        paint(axes, rows, plural)
        drawn[:] = [label.get_text() for label in axes.get_yticklabels()]

    monkeypatch.setattr(figures, "_accuracies", spy)
    report = {"latency": [], "per_class": classes}
    assert [figure.name for figure in figures.draw_figures(report, tmp_path)] == ["per_class"]
    assert drawn == ["Äpfel", "class 2"]


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


@pytest.mark.parametrize("error", [StageError, InputError, RuntimeException])
def test_cuda_that_does_not_start_is_unavailable_with_its_fix(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(paths: Any, **options: Any) -> Any:
        raise error("onnxruntime fell back")

    monkeypatch.setattr(stage, "cuda_problem", lambda: None)
    monkeypatch.setattr(stage, "measure_latency", lambda paths, *, provider, **options: ([{"provider": provider}], []))
    monkeypatch.setattr(stage, "measure_cuda", fail)
    rows, _, unavailable = stage._latency_everywhere(models, BenchmarkConfig())
    assert [row["provider"] for row in rows] == ["CPUExecutionProvider"]
    assert unavailable[0]["reason"] == "onnxruntime fell back"
    assert unavailable[0]["fix"].startswith("pip install")


def test_rows_of_cuda_stand_behind_those_of_the_cpu(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = [{"provider": "CUDA FP16", "reason": "no onnx", "fix": "pip install onnx"}]
    seen = {}

    def cuda(paths: Any, **options: Any) -> Any:
        seen.update(options)
        return [{"provider": "CUDA"}], [{"raw": 2}], lacking

    monkeypatch.setattr(stage, "cuda_problem", lambda: None)
    monkeypatch.setattr(stage, "measure_latency", lambda *_, **__: ([{"provider": "CPU"}], [{"raw": 1}]))
    monkeypatch.setattr(stage, "measure_cuda", cuda)
    settings = BenchmarkConfig(threads="2,1", batches="1,8", seconds=0.5)
    assert stage._latency_everywhere(models, settings) == (
        [{"provider": "CPU"}, {"provider": "CUDA"}],
        [{"raw": 1}, {"raw": 2}],
        lacking,
    )
    assert seen == {"batches": [1, 8], "threads": [2], "seconds": 0.5}


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
