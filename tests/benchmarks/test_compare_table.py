"""Several runs in one table and one picture: what is dominated, what is refused, and what a reader sees."""

import copy
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas
from PIL import Image
from typer.testing import CliRunner

from kdedge.benchmarks.report import figures
from kdedge.benchmarks.report.compare import tabulate
from kdedge.benchmarks.report.compare_text import print_comparison
from kdedge.benchmarks.report.pareto_figure import PICTURE_SIZE, paint_picture
from kdedge.errors import InputError
from kdedge.pipeline.cli import app

REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference"
REPORT: dict[str, Any] = json.loads((REFERENCE / "benchmark-vnni" / "report.json").read_text())

Model = tuple[float, float | None]


def report(arch: str, fp32: Model, int8: Model, **more: dict[str, Any]) -> dict[str, Any]:
    """Return a report of a student whose models have this top-1 in percent and p50 in ms (None: not measured)."""
    result = copy.deepcopy(REPORT)
    result["student"]["arch"] = arch
    result["gate"]["loss_pp"] = round(fp32[0] - int8[0], 4)
    result["latency"] = [row for row in result["latency"] if row["batch"] != 1]
    for model, (top1, p50) in (("fp32", fp32), ("int8", int8)):
        result["accuracy"][f"onnx_{model}_top1_pct"] = top1
        result["accuracy"][f"onnx_{model}_ci95_pct"] = [top1 - 0.5, top1 + 0.5]
        if p50 is not None:
            steady = {"verdict": "steady", "reasons": []}
            row = {**REPORT["latency"][0], "model": model, "p50_ms": p50, "trust": steady}
            # Neither of these is the latency that counts.
            result["latency"] += [
                {**row, "threads": 2, "p50_ms": 0.001},
                {**row, "provider": "X", "p50_ms": 0.001},
                row,
            ]
    for section, values in more.items():
        result.setdefault(section, {}).update(values)
    return result


# INT8 of the small one is the fastest and INT8 of the large one the most accurate; `slow` is as accurate as `small`.
SMALL = report("small", (81, 0.8), (80, 0.2))
LARGE = report("large", (91, 4), (91.5, 1))
SLOW = report("slow", (81, 3), (80, 0.5))
REPORTS, NAMES = [SLOW, LARGE, SMALL], ["runs/slow", "runs/large", "runs/small"]


def cases(table: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return run, model and what each row is dominated by."""
    return [
        (row["run"], row["model"], row["dominated_by"] and (row["dominated_by"]["run"], row["dominated_by"]["model"]))
        for row in table["rows"]
    ]


def test_rows_are_sorted_by_latency_and_say_what_dominates_them() -> None:
    table = tabulate(REPORTS, NAMES)
    assert json.loads(json.dumps(table)) == table
    assert cases(table) == [
        ("C", "int8", None),  # 80 % at 0.2 ms
        ("A", "int8", ("C", "int8")),  # as accurate, slower
        ("C", "fp32", None),  # 81 % at 0.8 ms
        ("B", "int8", None),  # 91.5 % at 1 ms
        ("A", "fp32", ("C", "fp32")),  # 81 % at 3 ms: the fastest of the two that dominate it
        ("B", "fp32", ("B", "int8")),  # slower than its own INT8, which is more accurate
    ]


def test_as_fast_and_as_accurate_dominates_only_with_more_of_one() -> None:
    same = tabulate([SMALL, SMALL], ["a", "b"])
    assert [row["dominated_by"] for row in same["rows"]] == [None] * 4
    for changed in (report("small", (81, 0.8), (80.01, 0.2)), report("small", (81, 0.8), (80, 0.199))):
        better = tabulate([SMALL, changed], ["a", "b"])
        assert [by for run, model, by in cases(better) if (run, model) == ("A", "int8")] == [("B", "int8")]
        assert [by for run, model, by in cases(better) if run == "B"] == [None, None]


def test_a_row_holds_what_the_report_knows() -> None:
    known = report("large", (91, 4), (91.5, 1), student={"train_images": 45_000}, gate={"verdict": "undecided"})
    rows = {row["model"]: row for row in tabulate([known, SMALL], ["a", "b"])["rows"] if row["run"] == "A"}
    student = {
        "run": "A", "label": "large", "student": "large", "params": 1_278_250, "macs": 71_667_456, "epochs": 20,
        "train_images": 45_000, "method": "selective", "trust": "steady",
    }  # fmt: skip
    assert rows["fp32"] == {
        **student, "model": "fp32", "top1_pct": 91, "ci95_pct": [90.5, 91.5], "loss_pp": None, "gate": None,
        "size_bytes": 5_113_003, "p50_ms": 4, "dominated_by": {"run": "A", "model": "int8"},
    }  # fmt: skip
    assert rows["int8"] == {
        **student, "model": "int8", "top1_pct": 91.5, "ci95_pct": [91, 92], "loss_pp": -0.5, "gate": "undecided",
        "size_bytes": 1_302_419, "p50_ms": 1, "dominated_by": None,
    }  # fmt: skip
    assert tabulate(REPORTS, NAMES)["rows"][0]["train_images"] is None


def test_runs_of_one_student_are_told_apart_by_their_directories() -> None:
    names = ["runs/kd/benchmark/report.json", "runs/ce/bundle", "runs/small"]
    labels = {row["run"]: row["label"] for row in tabulate([LARGE, LARGE, SMALL], names)["rows"]}
    assert labels == {"A": "large (kd)", "B": "large (ce)", "C": "small"}
    names = ["one/run", "two/run/benchmark", "small"]
    labels = {row["run"]: row["label"] for row in tabulate([LARGE, LARGE, SMALL], names)["rows"]}
    assert labels == {"A": "large (A)", "B": "large (B)", "C": "small"}


def test_more_runs_than_letters() -> None:
    table = tabulate([SMALL] * 28, [f"run{index}" for index in range(28)])
    assert list(table["reports"])[24:] == ["Y", "Z", "A1", "B1"]


def test_every_two_reports_must_be_of_the_same_test_images() -> None:
    known = [report("odd", (91, 4), (91, 1), accuracy={"images_sha256": digit * 64}) for digit in "12"]
    with pytest.raises(InputError, match="different test data"):
        tabulate([SMALL, *known], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"run": {"data": "sample"}}, "odd: 10,000 of sample"),
        ({"accuracy": {"n": 200}}, "odd: 200 of cifar10"),
        ({"run": {"same_test_images": False}}, "odd: 10,000 of cifar10, not those of its bundle"),
    ],
)
def test_accuracies_of_other_test_images_are_refused(changes: dict[str, Any], found: str) -> None:
    odd = report("odd", (91, 4), (91, 1), **changes)
    for reports, names in (([SMALL, LARGE, odd], ["a", "b", "odd"]), ([odd, SMALL, LARGE], ["odd", "a", "b"])):
        with pytest.raises(InputError, match="different test data cannot be put side by side") as caught:
            tabulate(reports, names)
        assert found in str(caught.value)
        assert "a: 10,000 of cifar10" in str(caught.value)
        assert "kdedge benchmark" in caught.value.hint


def test_latencies_of_other_hosts_are_left_out_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    table = tabulate([SLOW, report("large", (91, 4), (91.5, 1), host={"cpu": "another"}), SMALL], NAMES)
    assert [(row["p50_ms"], row["trust"], row["dominated_by"]) for row in table["rows"]] == [(None, None, None)] * 6
    assert [row["top1_pct"] for row in table["rows"]] == [91.5, 91, 81, 81, 80, 80]
    assert table["notes"] == ["other hosts: latencies and domination are left out"]
    print_comparison(table)
    assert "mind: other hosts: latencies and domination are left out" in capsys.readouterr().out


def test_what_else_limits_the_comparison_is_said_once() -> None:
    other = report("large", (91, 4), (91.5, 1), host={"onnxruntime": "9.9"})
    table = tabulate([SMALL, other, report("x", (70, 9), (70, 8), host={"onnxruntime": "9.9"})], NAMES)
    assert table["notes"] == ["another onnxruntime: the latencies compare the versions and the models together"]
    assert table["rows"][0]["p50_ms"] == 0.2


def test_a_model_without_that_latency_comes_last_and_is_named() -> None:
    table = tabulate([report("untimed", (99, None), (98, None)), SMALL, LARGE], NAMES)
    assert cases(table)[-2:] == [("A", "fp32", None), ("A", "int8", None)]
    assert table["notes"] == ["no latency on the CPU at batch 1 with one thread: A FP32, A INT8"]
    assert tabulate([SMALL, LARGE], ["a", "b"])["notes"] == []


def test_a_report_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="a is named twice"):
        tabulate([SMALL, LARGE, SMALL], ["a", "b", "a"])


# ------------------------------------------------------------------------------------------------ the command and files


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Write four reports with long names, one of them noisy, and return their directories."""
    noisy = {"verdict": "noisy: do not quote", "reasons": ["load"]}
    fourth = report("mobilenet_v2", (90.25, 1311.25), (90.125, 12.5), gate={"verdict": "undecided"})
    fourth["latency"][-1]["trust"] = noisy
    fourth["student"].update(params=11_173_962, macs=555_000_000, train_images=45_000, method="selective")
    folders = []
    for one in (*REPORTS, fourth):
        folders.append(tmp_path / one["student"]["arch"])
        folders[-1].mkdir()
        (folders[-1] / "report.json").write_text(json.dumps(one))
    return folders


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "80"})


def test_three_and_more_reports_are_a_table_of_80_columns(runs: list[Path]) -> None:
    result = invoke(*runs)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    rows = [re.sub(r" {2,}", "|", line) for line in lines]
    # Whole cells: nothing was broken into a second line for want of room.
    assert "D|mobilenet_v2|11.17|555|45,000|20|selective|+0.12|undecided" in rows
    assert "D|mobilenet_v2|INT8|90.12|89.62–90.62|1.30|12.5|noisy|B INT8" in rows
    assert "C|small|INT8|80.00|79.50–80.50|1.30|0.200|steady" in rows
    order = [row.split("|")[0] for row in rows if "|INT8|" in row or "|FP32|" in row]
    assert order == ["C", "A", "C", "B", "A", "B", "D", "D"]
    assert lines[-1] == "noisy: do not quote"


def test_markdown_and_json_hold_every_row(runs: list[Path]) -> None:
    text = invoke(*runs, "--markdown").stdout
    (block,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = block.splitlines()
    assert re.fullmatch(r"(\|---)+\|", lines[1])
    assert len(lines) == 10
    assert len({line.count("|") for line in lines}) == 1
    assert (
        "| D | mobilenet_v2 | INT8 | 11.17 | 555 | 45,000 | 20 | selective | 90.12 | 89.62–90.62 | +0.12 | undecided "
        "| 1.30 | 12.5 | noisy | B INT8 |"
    ) in lines
    assert text.startswith(f"- **A**: {runs[0]}: Intel")
    loaded = [json.loads((run / "report.json").read_text()) for run in runs]
    assert json.loads(invoke(*runs, "--json").stdout) == tabulate(loaded, [str(run) for run in runs])


@pytest.mark.filterwarnings("error")
def test_figures_are_drawn_and_the_same_data_give_the_same_file(runs: list[Path], tmp_path: Path) -> None:
    png, svg = tmp_path / "new" / "students.png", tmp_path / "students.SVG"
    result = invoke(*runs, "--figure", png)
    assert (result.exit_code, result.stderr) == (0, f"figure: {png}\n")
    assert invoke(*runs, "--figure", svg, "--json").exit_code == 0
    with Image.open(png) as image:
        assert image.size == (1080, 660)
        colors = {color for _, color in image.convert("RGB").getcolors(10**6)}
    assert {(255, 255, 255), (0x2F, 0x7E, 0xD8), (0xA9, 0xB1, 0xBC)} <= colors
    text = " ".join(ET.fromstring(svg.read_text()).itertext())
    for word in ("mobilenet_v2", "small", "noisy: do not quote", "10,000 test images of cifar10", "Xeon", "2 cores"):
        assert word in text
    again = tmp_path / "again.png"
    invoke(*runs, "--figure", again)
    assert again.read_bytes() == png.read_bytes()


def test_two_reports_are_compared_as_before_and_drawn(runs: list[Path], tmp_path: Path) -> None:
    result = invoke(*runs[:2], "--figure", tmp_path / "two.png")
    assert result.stdout == invoke(*runs[:2]).stdout
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_filled_and_hollow_grey_and_noisy() -> None:
    noisy = report("noisy", (95, 9), (94, 8))
    noisy["latency"][-1]["trust"] = {"verdict": "noisy: do not quote", "reasons": []}
    canvas = Canvas(layout="constrained")
    axes = canvas.subplots()
    paint_picture(axes, tabulate([SLOW, SMALL, noisy], NAMES))
    points = {
        tuple(line.get_data()[axis][0] for axis in (0, 1)): (line.get_color(), line.get_markerfacecolor())
        for line in axes.get_lines()
        if line.get_marker() == "o"
    }
    white, blue, grey = axes.get_facecolor(), "#2f7ed8", "#a9b1bc"
    assert points == {
        (0.2, 80): (blue, blue), (0.5, 80): (grey, grey), (0.8, 81): (blue, white), (3, 81): (grey, white),
        (8, 94): (blue, blue), (9, 95): (blue, white),
    }  # fmt: skip
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == ["noisy", "noisy", "slow", "small"]
    (mark,) = (text for text in axes.texts if text.get_text() == "noisy" and text.get_fontsize() == 7)
    assert mark.xy == (8, 93.5)
    assert axes.get_title(loc="left") == "noisy: do not quote"
    assert axes.get_xscale() == "log"


def test_no_label_covers_another_or_leaves_the_picture() -> None:
    crowd = [report(f"student-{index}", (88.1, 0.9 + index / 20), (88, 0.3 + index / 50)) for index in range(4)]
    long = report("a student with a name that is far longer than the picture has room for", (80, 0.4), (80, 0.2))
    canvas = Canvas(figsize=PICTURE_SIZE, dpi=150, layout="constrained")
    axes = canvas.subplots()
    paint_picture(axes, tabulate([*crowd, long], [f"run{index}" for index in range(5)]))
    canvas.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5
    assert all(axes.bbox.x0 - 1 <= box.x0 and box.x1 <= axes.bbox.x1 + 1 for box in boxes)
    assert sum(box.count_overlaps(boxes) - 1 for box in boxes) == 0


def test_what_cannot_be_drawn_is_said(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*arguments: object) -> str:
        result = invoke(*arguments)
        assert result.exit_code == 2
        return " ".join(result.stderr.split())

    assert "--figure needs two reports or more" in error(runs[0], "--figure", "x.png")
    assert "it ends neither with .png nor .svg" in error(*runs, "--figure", "x.pdf")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report("far", (91, 4), (90, 1), host={"cpu": "Cortex-A76"})))
    message = error(runs[0], folder, "--figure", tmp_path / "x.png")
    assert "latencies of different hosts cannot be put into one picture" in message
    assert "Cortex-A76, 2 cores" in message
    assert "kdedge benchmark BUNDLE" in message
    for run in runs:
        untimed = report(run.name, (91, None), (90, None))
        (run / "report.json").write_text(json.dumps(untimed))
    assert "no report has a latency on the CPU at batch 1" in error(*runs, "--figure", tmp_path / "x.png")
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    assert "pip install matplotlib" in error(*runs, "--figure", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
