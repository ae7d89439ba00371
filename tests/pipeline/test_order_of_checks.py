"""Checks come before any work, and only a stage that was made changes what a run directory says of its making."""

import json
import shutil

import pytest
from tiny import make_folder
from typer.testing import CliRunner

from kdedge.errors import DivergenceError, GateError, StageError
from kdedge.files import file_sha256
from kdedge.inputs import image_input
from kdedge.manifest import load_manifest
from kdedge.pipeline import run as stages
from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import check_outside, open_dataset
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.weights import save_module


def kdedge(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def no_work(monkeypatch):
    """Fail where a precision would be timed or a stage would run."""
    monkeypatch.setattr(
        "kdedge.pipeline.training.device._faster_precision", lambda threads: pytest.fail("timed a training step")
    )
    monkeypatch.setattr(stages, "run_stage", lambda *_, **__: pytest.fail("ran a stage"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--data", "sample"], "holds no finished stage"),
        (["run-all", "--data", "sample", "--affinity", "77"], "CPU 77 is not available"),
        (["run-all", "--data", "sample", "--teacher-cutout", "512"], "--teacher-cutout 512 is larger than the images"),
        (
            ["run-all", "--data", "windows:w", "--teacher-image-size", "64"],
            "--teacher-image-size is for images; --data",
        ),
        (["run-all", "--data", "sample", "--teacher", "resnet19"], "unknown teacher 'resnet19' (did you mean"),
        (["run-all", "--data", "sample", "--teacher-weights", "no.pth"], "weights no.pth do not exist"),
        (["run-all", "--data", "sample", "--threads", "1024"], "--threads 1024 is far above the"),
        (["compare", "--data", "sample", "--threads", "1024"], "--threads 1024 is far above the"),
        (["compare", "--data", "folder:/no/such"], "/no/such does not exist"),
        (["compare", "--data", "sample", "--student-weights", "no.pth"], "weights no.pth do not exist"),
        (["compare", "--data", "sample", "--more-teachers", "no/teacher"], "expected the folder of a finished teacher"),
        (["compare", "--data", "sample", "--seeds", "x"], "'x' is not a whole number"),
        (["benchmark", "no/bundle", "--data", "sample"], "expected a bundle"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_leaves_nothing_behind(arguments, message, no_work, tmp_path):
    result = kdedge(*arguments, "--out", tmp_path / "new" / "run", code=2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "new").exists()


def test_a_missing_emulator_is_found_before_the_data_set_is_fetched(no_work, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "kdedge.benchmarks.emulate.emulator._find_qemu", lambda name: (_ for _ in ()).throw(StageError("no qemu"))
    )
    monkeypatch.setattr("kdedge.pipeline.data.sources.open_dataset", lambda config: pytest.fail("opened the data set"))
    result = kdedge("run-all", "--emulate", "haswell", "--out", tmp_path / "run", code=1)
    assert "no qemu" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_directory_does_not_become_a_class(no_work, tmp_path, monkeypatch):
    data = make_folder(tmp_path / "data", train=3, test=1)
    monkeypatch.chdir(data / "train")
    for command in (["run-all"], ["compare"]):
        result = kdedge(*command, "--data", "folder:.", code=2)
        assert "is inside the data folder ., where it would become a class" in " ".join(result.stderr.split())
    assert sorted(path.name for path in (data / "train").iterdir()) == ["blue", "green", "red"]
    # Next to train and test other folders are no classes.
    check_outside(open_dataset(DataConfig(source=f"folder:{data}")), data / "artifacts" / "run")


FINGERPRINTS = {name: spec.fingerprint for name, spec in stages.STAGES.items()}


def made(run_dir, name, config):
    """Write a finished stage, as far as what is recorded of a run depends on it."""
    (run_dir / name).mkdir(parents=True)
    manifest = {
        "schema": 1,
        "stage": name,
        "config": FINGERPRINTS[name](config),
        "inputs": {},
        "outputs": {},
        "facts": {},
    }
    (run_dir / name / "manifest.json").write_text(json.dumps(manifest))


def test_a_failed_command_leaves_the_configuration_of_a_finished_run(folder_data, tmp_path, monkeypatch):
    runtime = {"seed": 0, "device": "cpu", "threads": 1, "precision": "fp32"}
    config = build_config({"data": {"source": f"folder:{folder_data}"}, "runtime": runtime})
    run_dir, ran = tmp_path / "run", []

    def run_stage(spec, config, run_dir, *, force=False, **options):
        ran.append(spec.name)
        if spec.name == "distill" and config.distill.lr == 9:
            raise DivergenceError("diverged")
        shutil.rmtree(run_dir / spec.name, ignore_errors=True)
        made(run_dir, spec.name, config)
        return True

    def recorded():
        return json.loads((run_dir / "config.json").read_text())

    run_dir.mkdir()
    monkeypatch.setattr(stages, "run_stage", run_stage)
    stages.run_stages(("teacher", "distill"), config, run_dir)
    before = recorded()
    failing = build_config(before, {"runtime": {"seed": 7}, "distill": {"lr": 9.0}})
    with pytest.raises(DivergenceError):
        stages.run_stages(("distill",), failing, run_dir)
    assert recorded() == before
    # The teacher is made with the new seed; the student that is there was not.
    with pytest.raises(DivergenceError):
        stages.run_stages(("teacher", "distill"), failing, run_dir)
    assert recorded()["runtime"]["seed"] == 7
    assert recorded()["distill"] == before["distill"]
    assert ran == ["teacher", "distill", "distill", "teacher", "distill"]


def test_the_options_of_a_new_run_are_recorded_with_its_first_stage(tiny_options, tmp_path, monkeypatch):
    def run_stage(spec, config, run_dir, **options):
        if spec.name == "distill":
            raise KeyboardInterrupt
        made(run_dir, spec.name, config)
        return True

    monkeypatch.setattr(stages, "run_stage", run_stage)
    kdedge("run-all", *tiny_options, "--out", tmp_path / "run", code=130)
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded["distill"]["student"], recorded["benchmark"]["seconds"]) == ("lite-xs", 0.1)


def test_an_interrupted_first_stage_resumes_with_its_precision(tmp_path):
    partial = tmp_path / ".teacher.partial"
    partial.mkdir()
    runtime = {"seed": 0, "device": "cpu", "threads": 1, "precision": "bf16", "isa": "any"}
    (partial / ".wanted.json").write_text(json.dumps({"config": {"runtime": runtime}, "inputs": {}}))
    assert stages.recorded_runtime(tmp_path) == runtime


def finished_stage(run_dir, name, outputs=None, inputs=None):
    folder = run_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "schema": 1, "stage": name, "config": {}, "facts": {}, "inputs": inputs or {}, "outputs": outputs or {}
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("command", ["run-all", "compare"])
def test_weights_and_teachers_that_do_not_fit_are_refused_before_the_teacher_trains(
    command, folder_data, no_work, tmp_path
):
    common = ("--data", f"folder:{folder_data}", "--image-size", 16, "--student", "lite-xs")
    other, classes = tmp_path / "other" / "teacher", ["cat", "dog", "cow"]
    finished_stage(other.parent, "teacher")
    (other / "teacher.json").write_text(json.dumps({"num_classes": 3, "channels": None, "classes": classes}))
    weights = tmp_path / "student.safetensors"
    save_module(build_student("lite-xs", 7, image_input(16)), weights)
    for option, path, message in (
        ("--more-teachers", other, "calls class 0 'cat', the data set 'blue'"),
        ("--student-weights", weights, "does not fit a 'lite-xs' student with 3 classes: classifier.bias is (7,)"),
    ):
        result = kdedge(command, *common, option, path, "--out", tmp_path / "new" / "run", code=2)
        assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "new").exists()


def test_a_stage_whose_inputs_were_made_from_an_earlier_result_does_not_run(no_work, tmp_path):
    run_dir = tmp_path / "my run"
    weights = run_dir / "distill" / "student.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("first")
    finished_stage(run_dir, "distill", {weights.name: file_sha256(weights)})
    model = {"distill/student.safetensors": file_sha256(weights)}
    finished_stage(run_dir, "export", inputs=model)
    stages._check_current(run_dir, "export")
    weights.write_text("second")
    finished_stage(run_dir, "distill", {weights.name: file_sha256(weights)})
    finished_stage(run_dir, "quantize")
    for later in ("quantize", "benchmark"):
        result = kdedge(later, "--data", "sample", "--out", run_dir, code=2)
        error = " ".join(result.stderr.split())
        assert f"{run_dir / 'export'} is of an earlier result of {run_dir / 'distill'}" in error
        assert f"-> run `kdedge export --out '{run_dir}'` first" in error
        finished_stage(run_dir, "teacher")


def bundle(run_dir, name, passed, report="old"):
    folder = run_dir / name
    folder.mkdir(parents=True)
    manifest = {
        "schema": 1, "stage": "bundle", "config": {}, "inputs": {"benchmark/report.json": report}, "outputs": {},
        "facts": {"passed": passed},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def refuse(run_dir, monkeypatch):
    """Run the bundle stage with a gate that refuses."""

    def run_stage(spec, *_, **__):
        raise GateError("the gate failed")

    monkeypatch.setattr(stages, "run_stage", run_stage)
    monkeypatch.setattr(stages, "check_stages", lambda *_: None)
    with pytest.raises(GateError):
        stages.run_stages(("bundle",), stages.Config(), run_dir)


def test_a_verified_bundle_is_moved_aside_when_a_later_gate_fails(tmp_path, monkeypatch, capsys):
    bundle(tmp_path, "bundle", passed=True)
    (tmp_path / "bundle" / "model").write_text("first")
    refuse(tmp_path, monkeypatch)
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle.previous" / "model").read_text() == "first"
    log = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / 'bundle'} is of an earlier command" in log
    assert "the gate does not accept the present model: moved to" in log
    bundle(tmp_path, "bundle", passed=True)
    (tmp_path / "bundle" / "model").write_text("second")
    refuse(tmp_path, monkeypatch)
    assert (tmp_path / "bundle.previous" / "model").read_text() == "second"
    bundle(tmp_path, "bundle", passed=False)
    refuse(tmp_path, monkeypatch)
    assert (tmp_path / "bundle.previous" / "model").read_text() == "second", "one that passed is not replaced"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("passed", [True, False])
def test_what_a_user_put_into_a_bundle_survives_a_later_gate_that_fails(passed, tmp_path, monkeypatch):
    for name, note in (("bundle.previous", "first"), ("bundle", "second")):
        folder = bundle(tmp_path, name, passed=passed or name == "bundle.previous")
        (folder / "notes.md").write_text(note)
        (folder / note).mkdir()
        (folder / note / "mine.txt").write_text(note)
    refuse(tmp_path, monkeypatch)
    assert not (tmp_path / "bundle").exists()
    previous = tmp_path / "bundle.previous"
    assert {(previous / name).read_text() for name in ("notes.md", "notes.md.old")} == {"first", "second"}
    assert [(previous / note / "mine.txt").read_text() for note in ("first", "second")] == ["first", "second"]


@pytest.mark.parametrize(("verdict", "report", "kept"), [("failed", "old", False), ("passed", "old", True)])
def test_a_benchmark_alone_leaves_no_bundle_of_another_report_that_fails(verdict, report, kept, tmp_path, monkeypatch):
    bundle(tmp_path, "bundle", passed=True)
    made(tmp_path, "benchmark", stages.Config())
    gate = {"verdict": verdict, "reason": "it lost too much"}
    (tmp_path / "benchmark" / "report.json").write_text(json.dumps({"gate": gate, "accuracy": {"n": 9}}))
    monkeypatch.setattr(stages, "run_stage", lambda *_, **__: True)
    monkeypatch.setattr(stages, "check_stages", lambda *_: None)
    stages.run_stages(("benchmark",), stages.Config(), tmp_path)
    assert (tmp_path / "bundle").exists() == kept
    assert (tmp_path / "bundle.previous").exists() != kept


def test_a_bundle_of_the_very_report_stays(tmp_path, monkeypatch):
    made(tmp_path, "benchmark", stages.Config())
    report = tmp_path / "benchmark" / "report.json"
    report.write_text(json.dumps({"gate": {"verdict": "undecided"}, "accuracy": {"n": 9}}))
    bundle(tmp_path, "bundle", passed=False, report=file_sha256(report))
    monkeypatch.setattr(stages, "run_stage", lambda *_, **__: True)
    monkeypatch.setattr(stages, "check_stages", lambda *_: None)
    stages.run_stages(("benchmark",), stages.Config(), tmp_path)
    assert load_manifest(tmp_path / "bundle")["facts"]["passed"] is False
