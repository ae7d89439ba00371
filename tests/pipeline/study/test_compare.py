"""`kdedge compare` on a tiny data set: cells, tables, resume, what is refused."""

import csv
import json
import sys

import pytest
from tiny import TINY
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.distill import stage

DROPPED = ("--distill-epochs", "--calibration-images", "--latency-seconds", "--latency-batches")
OPTIONS = [
    part for flag, value in zip(TINY[:-1:2], TINY[1:-1:2], strict=True) for part in (flag, value) if flag not in DROPPED
]


def kdedge(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory, folder_data):
    out = tmp_path_factory.mktemp("study") / "compare"
    command = ["compare", "--data", f"folder:{folder_data}", *OPTIONS, "--out", out, "--epochs", 2, "--seeds", "0,1"]
    return out, [*command, "--methods", "selective,ce,kd", "--reach", 20]


@pytest.fixture(scope="module")
def compared(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdedge", *map(str, study[1])])
        return kdedge(*study[1])


def test_a_comparison_has_a_run_directory_per_cell_and_a_row_in_the_table(study, compared):
    out, _ = study
    rows = read(out / "evaluation_results.csv")
    keys = [(row["method"], row["seed"]) for row in rows]
    assert keys == [(method, seed) for seed in "01" for method in ("ce", "kd", "selective")]
    for row in rows:
        cell = out / "e2" / f"seed{row['seed']}" / row["method"]
        manifest = json.loads((cell / "distill" / "manifest.json").read_text())
        assert manifest["config"]["distill"]["method"] == row["method"]
        assert manifest["config"]["runtime"]["seed"] == int(row["seed"])
        assert float(row["val_top1_pct"]) == manifest["facts"]["val_top1_pct"]
        assert (cell / "teacher").resolve() == (out / "teacher").resolve()
        extra = int(row["trained_params"]) - int(row["params"])
        assert (extra > 0) == (row["method"] == "selective") == (int(row["hint_map_bytes"]) > 0)
        teacher = json.loads((out / "teacher" / "manifest.json").read_text())["facts"]["val_top1_pct"]
        assert float(row["teacher_gap_pp"]) == pytest.approx(teacher - float(row["val_top1_pct"]), abs=1e-3)


def test_the_page_says_what_the_numbers_are(study, compared, folder_data):
    page = (study[0] / "comparison.md").read_text()
    assert compared.stdout.strip() == page.strip()
    assert page.startswith("# Comparison of methods\n")
    named = f"folder:{folder_data.name}"
    texts = ("6 of 6 cells", "Commit: ", "Hardware: ", "threads: 1", "2 seeds", f"Training images: all of {named}; ")
    for text in (*texts, f"Command: `kdedge compare --data {named} ", " --out compare --epochs 2 "):
        assert text in page
    assert str(folder_data.parent) not in page
    assert "validation images of seed 1 are not the teacher's (seed 0)" in page
    scanned = read(study[0] / "block_variances.csv")
    chosen = [
        row["block"] for row in scanned if row["method"] == "selective" and row["seed"] == "0" and row["chosen"] == "1"
    ]
    assert len(chosen) == 3


def test_the_same_command_trains_nothing_and_gives_the_same_table(study, compared):
    out, command = study
    before = (out / "evaluation_results.csv").read_text()
    result = kdedge(*command, "--json")
    assert result.stderr.count("distill: up to date, skipped") == 6
    assert (out / "evaluation_results.csv").read_text() == before
    printed = json.loads(result.stdout)
    assert len(printed["rows"]) == 6
    assert {entry["method"] for entry in printed["summary"]} == {"ce", "kd", "selective"}


def test_a_later_command_adds_to_the_table_what_was_trained_alike(study, compared):
    out, command = study
    before = (out / "evaluation_results.csv").read_text()
    command = list(command)
    command[command.index("--seeds") + 1] = "1"
    command[command.index("--methods") + 1] = "kd"
    assert kdedge(*command).stderr.count("distill: up to date, skipped") == 6
    assert (out / "evaluation_results.csv").read_text() == before
    page = kdedge(*command, "--temperature", "2", "--out", out, code=0).stdout
    assert "1 of 1 cells" in page  # the others were trained at another temperature
    kdedge(*study[1])
    assert (out / "evaluation_results.csv").read_text().count("done") == 6


def test_a_finished_teacher_is_taken_and_not_copied(study, compared, tmp_path):
    out, command = study
    command = [tmp_path if part == out else part for part in command]
    command[command.index("--seeds") + 1] = "0"
    command[command.index("--methods") + 1] = "kd"
    page = kdedge(*command, "--teacher-dir", out / "teacher").stdout
    assert "The control ce is not among the cells" in page
    assert "one seed" not in page.split("- ±")[0]
    cell = "e2/seed0/kd/distill/student.safetensors"
    assert (tmp_path / cell).read_bytes() == (out / cell).read_bytes()
    assert not (tmp_path / "teacher").exists()


def test_a_cell_that_diverges_is_recorded_and_the_study_goes_on(study, compared, tmp_path, monkeypatch):
    from pipeline.errors import DivergenceError

    out, command = study
    honest = stage.run

    def run(config, inputs, out_dir):
        if config.distill.method == "kd":
            raise DivergenceError("the loss became nan")
        return honest(config, inputs, out_dir)

    monkeypatch.setattr(stage, "run", run)
    command = [tmp_path if part == out else part for part in command]
    command[command.index("--seeds") + 1] = "0"
    result = kdedge(*command, "--teacher-dir", out / "teacher")
    status = {row["method"]: row["status"] for row in read(tmp_path / "evaluation_results.csv")}
    assert status == {"ce": "done", "kd": "diverged", "selective": "done"}
    assert "| kd | diverged |" in result.stdout
    assert "warning: kd, 2 epochs, seed 0: stage distill: the loss became nan" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ce,selectiv"], "unknown name 'selectiv' (did you mean 'selective'?)"),
        (["--epochs", "0"], "--epochs '0': '0' is not a whole number from 1"),
        (["--seeds", "a"], "--seeds 'a': 'a' is not a whole number from 0"),
        (["--methods", "static", "--epochs", "40,5"], "5 hint-only epochs (--hint-epochs) leave none of 5"),
        (["--method", "kd"], "--method"),
        (["--teacher-dir", "/does/not/exist"], "holds no finished stage"),
    ],
)
def test_what_no_cell_can_do_is_refused_before_anything_is_trained(arguments, message, study, tmp_path):
    command = [tmp_path if part == study[0] else part for part in study[1]]
    result = kdedge(*command, *arguments, code=2)
    assert message in result.stderr
    assert "running" not in result.stderr


def test_test_images_are_read_only_when_asked_for_and_after_the_last_training(study, compared, tmp_path, monkeypatch):
    from pipeline.data.folder import Folder

    events = []
    honest_test, honest_run = Folder.test, stage.run
    monkeypatch.setattr(Folder, "test", lambda self: events.append("test images") or honest_test(self))
    monkeypatch.setattr(stage, "run", lambda *arguments: events.append("training") or honest_run(*arguments))
    out, command = study
    command = [tmp_path if part == out else part for part in command]
    command[command.index("--seeds") + 1] = "0"
    command[command.index("--methods") + 1] = "ce,kd"
    page = kdedge(*command, "--teacher-dir", out / "teacher").stdout
    assert events == ["training", "training"]
    assert "INT8 test" not in page
    page = kdedge(*command, "--teacher-dir", out / "teacher", "--test").stdout
    assert events == ["training", "training", "test images", "test images"]
    assert "INT8 test top-1 %" in page
    for row in read(tmp_path / "evaluation_results.csv"):
        report = tmp_path / "e2" / "seed0" / row["method"] / "benchmark" / "report.json"
        assert float(row["int8_test_top1_pct"]) == json.loads(report.read_text())["accuracy"]["onnx_int8_top1_pct"]
