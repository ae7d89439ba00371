"""What `--test` of a study measures, keeps and leaves alone."""

import json
import shutil

import pytest
from studies import kdedge, read, small, without_teacher_options

from kdedge.files import file_sha256
from kdedge.pipeline.models.teacher import Teacher
from kdedge.pipeline.stages import benchmark as evaluate
from kdedge.pipeline.stages import distill as stage


@pytest.fixture(scope="module")
def interrupted(study, compared, tmp_path_factory):
    """A study of two cells whose measurement on test images stopped at the second."""
    from kdedge.errors import StageError
    from kdedge.pipeline.study import cells

    out, honest = tmp_path_factory.mktemp("interrupted"), cells.run_stages

    def run_stages(names, config, *arguments, **options):
        if "benchmark" in names and config.distill.method == "kd":
            raise StageError("the disk is full")
        return honest(names, config, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "run_stages", run_stages)
        kdedge(*small(study, out, "--test", methods="ce,kd"), code=1)
    return out


def on_test_images(out):
    """Return the test accuracies in the table, by method."""
    rows = read(out / "evaluation_results.csv")
    return {row["method"]: (row["fp32_test_top1_pct"], row["int8_test_top1_pct"]) for row in rows}


def measured(cell):
    """Return the test accuracies in the report of a cell, as the table has them."""
    accuracy = json.loads((cell / "test" / "benchmark" / "report.json").read_text())["accuracy"]
    return str(accuracy["onnx_fp32_top1_pct"]), str(accuracy["onnx_int8_top1_pct"])


def test_what_was_measured_on_test_images_is_written_after_each_cell(interrupted):
    assert on_test_images(interrupted) == {"ce": measured(interrupted / "e2" / "seed0" / "ce"), "kd": ("", "")}
    page = (interrupted / "comparison.md").read_text()
    assert "INT8 test top-1 %" in page


def test_what_was_measured_on_test_images_is_kept_while_it_is_of_the_student(study, interrupted, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(interrupted, out)
    table = out / "evaluation_results.csv"  # nothing is read from it: its header marks the folder as a study
    table.write_text(table.read_text().splitlines()[0] + "\n")
    cell = out / "e2" / "seed0" / "ce"
    known = {"ce": measured(cell), "kd": ("", "")}
    kdedge(*small(study, out))
    assert on_test_images(out) == known

    change(cell / "test" / "benchmark", lambda manifest: manifest["config"]["host"].update(cpu="another"))
    kdedge(*small(study, out))
    assert on_test_images(out) == known

    student = cell / "distill" / "student.safetensors"
    student.write_bytes((out / "e2" / "seed0" / "kd" / "distill" / "student.safetensors").read_bytes())
    digest = file_sha256(student)
    change(cell / "distill", lambda manifest: manifest["outputs"].update({"student.safetensors": digest}))
    result = kdedge(*small(study, out))
    assert on_test_images(out) == {"ce": ("", ""), "kd": ("", "")}
    assert "ce, 2 epochs, seed 0: test results are left out: export: changed: inputs distill" in (result.stderr)
    assert "INT8 test" not in result.stdout


def change(stage_dir, edit):
    """Edit the manifest of a stage."""
    path = stage_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_test_images_are_read_only_when_asked_for_and_after_the_last_training(study, compared, tmp_path, monkeypatch):
    from kdedge.pipeline.data.user_images import UserImages

    events, scored = [], []
    honest_test, honest_run, honest_top1 = UserImages.test, stage.run, evaluate._top1_pct
    monkeypatch.setattr(evaluate._TorchScores, "_teachers", {})
    monkeypatch.setattr(
        evaluate, "_top1_pct", lambda model, *rest: scored.append(type(model)) or honest_top1(model, *rest)
    )
    monkeypatch.setattr(UserImages, "test", lambda self: events.append("test images") or honest_test(self))
    monkeypatch.setattr(stage, "run", lambda *arguments: events.append("training") or honest_run(*arguments))
    out, command = study
    command = [tmp_path if part == out else part for part in without_teacher_options(command)]
    command[command.index("--seeds") + 1] = "0"
    command[command.index("--methods") + 1] = "ce,kd"
    page = kdedge(*command, "--teacher-dir", out / "teacher").stdout
    assert events == ["training", "training"]
    assert "INT8 test" not in page
    cell = tmp_path / "e2" / "seed0" / "kd"
    kdedge("export", "--out", cell)
    kdedge("quantize", "--out", cell, "--target", "x64-vnni", "--no-compare-formats")
    own = (cell / "quantize" / "manifest.json").read_text()
    page = kdedge(*command, "--teacher-dir", out / "teacher", "--test").stdout
    assert events == ["training", "training", "test images", "test images"]
    assert "INT8 test top-1 %" in page
    # What the user made of a cell stays; a study measures in a hurry.
    assert (cell / "quantize" / "manifest.json").read_text() == own
    teachers = set()
    for row in read(tmp_path / "evaluation_results.csv"):
        report = tmp_path / "e2" / "seed0" / row["method"] / "test" / "benchmark" / "report.json"
        measured_there = json.loads(report.read_text())
        assert float(row["int8_test_top1_pct"]) == measured_there["accuracy"]["onnx_int8_top1_pct"]
        teachers.add(measured_there["teacher"]["test_top1_pct"])
    assert [model is Teacher for model in scored] == [True, False, False], "the teacher is scored once for all cells"
    assert len(teachers) == 1
    assert None not in teachers
