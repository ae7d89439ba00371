"""Several students in one run: which is chosen, what the run directory then has, and what is refused."""

import csv
import json
import shutil

import pytest
from tiny import TINY
from typer.testing import CliRunner

from kdedge.errors import GateError, InputError, StageError
from kdedge.export.bundle.verify import verify_bundle
from kdedge.files import load_json, write_json
from kdedge.manifest import load_manifest, sealed
from kdedge.pipeline import students
from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.checks import RUN_ALL_FLAGS
from kdedge.pipeline.run import record_config
from kdedge.pipeline.students import check_students, choose, one_student, run_students
from kdedge.pipeline.students_page import print_students

NAMES = ["lite", "lite-s", "lite-xs"]


def kdedge(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result


def done(name, accuracy, macs):
    return {"student": name, "status": "done", "int8_val_pct": accuracy, "macs": macs}


@pytest.mark.parametrize(
    ("tolerance", "chosen"), [(0, "big"), (0.49, "big"), (0.5, "middle"), (3, "middle"), (10, "small"), (100, "small")]
)
def test_the_cheapest_within_the_tolerance_is_chosen(tolerance, chosen):
    rows = [done("middle", 89.5, 10), done("big", 90.0, 50), done("small", 80.0, 1), {"status": "failed"}]
    assert choose(rows, tolerance) == chosen


def test_the_tolerance_is_included():
    assert choose([done("big", 64.4, 50), done("small", 63.4, 1)], 1.0) == "small"
    assert choose([done("big", 64.4, 50), done("small", 63.39, 1)], 1.0) == "big"


def test_there_is_no_choice_if_every_student_failed():
    with pytest.raises(StageError, match="every student failed; lite: no space"):
        choose([{"student": "lite", "status": "failed", "error": "no space"}], 0.5)


@pytest.fixture
def run(finished, monkeypatch, plain_figures):
    """Runs three students; their stages are copies of a finished run with the given accuracy, or an error."""

    def stages(names, config, run_dir, *, results, **_):
        result = results.get(config.distill.student)
        if names != ("teacher",) and isinstance(result, StageError):
            raise result
        for stage in names:
            shutil.rmtree(run_dir / stage, ignore_errors=True)
            shutil.copytree(finished / stage, run_dir / stage)
            manifest = load_manifest(run_dir / stage)
            if stage == "export":
                manifest["facts"]["macs"] = 10 ** (9 - NAMES.index(config.distill.student))
            if stage == "quantize":
                top1, *balanced = result if isinstance(result, tuple) else (result,)
                manifest["facts"]["validation"]["top1_pct"] = abs(top1)
                manifest["facts"]["validation"] |= dict(zip(["balanced_pct"], balanced, strict=False))
            write_json(run_dir / stage / "manifest.json", sealed(manifest))
        known = load_json(finished / "config.json", ("distill",))
        known["distill"]["student"] = config.distill.student
        write_json(run_dir / "config.json", known)
        if names != ("teacher",) and not isinstance(result, tuple) and result < 0:  # the gate refused it
            shutil.rmtree(run_dir / "bundle")
            raise GateError("the gate is undecided")
        return True

    def run(out, tolerance, **results):
        config = build_config(load_json(finished / "config.json", ("distill",)))
        results = dict(zip(NAMES, results.values(), strict=True))
        monkeypatch.setattr(students, "run_stages", lambda *args, **kwargs: stages(*args, results=results, **kwargs))
        check_students(NAMES, config, out)
        out.mkdir(exist_ok=True)
        return run_students(NAMES, config, out, tolerance)[1]

    return run


def test_the_metric_of_the_gate_decides(run, tmp_path):
    result = run(tmp_path / "run", 1.0, a=(90.0, 70.0), b=(90.0, 69.5), c=(90.0, 40.0))
    assert (result["chosen"], [row["int8_val_pct"] for row in result["students"]]) == ("lite-s", [70.0, 69.5, 40.0])


def test_the_run_directory_is_that_of_the_chosen_student(run, tmp_path, capsys):
    out = tmp_path / "run"
    result = run(out, 1.0, a=90.0, b=89.2, c=StageError("the student has learned nothing"))
    log = capsys.readouterr().err
    assert all(f"student {number} of 3: {name}" in log for number, name in enumerate(NAMES, 1))
    assert "warning: student lite-xs: the student has learned nothing" in log
    assert (result["chosen"], [row["status"] for row in result["students"]]) == ("lite-s", ["done", "done", "failed"])
    assert verify_bundle(out / "bundle")["files"]
    assert (out / "bundle").resolve() == out / "students" / "lite-s" / "bundle"
    assert (out / "students" / "lite" / "teacher").resolve() == out / "teacher"
    assert load_json(out / "config.json", ("distill",))["distill"]["student"] == "lite-s"
    assert json.loads(kdedge("report", out, "--json").stdout)["student"]["arch"] == "lite-xs"  # that of the copied run
    with (out / "students.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["int8_val_pct"] for row in rows] == ["90.0", "89.2", ""]
    assert json.loads((out / "students.json").read_text()) == result
    page = (out / "students.html").read_text()
    assert '<a href="students/lite-s/benchmark/report.html">lite-s</a>' in page
    assert "lite-xs failed: the student has learned nothing" in page
    assert "data:image/png;base64," in page
    print_students(result)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "INT8 accuracy on 24 validation inputs is 0.80 pp below that of lite." in " ".join(text.split())


def test_another_choice_replaces_the_links_and_a_refused_model_leaves_no_bundle(run, tmp_path):
    out = tmp_path / "run"
    assert run(out, 1.0, a=90.0, b=89.2, c=50.0)["chosen"] == "lite-s"
    assert run(out, 0.1, a=-90.0, b=89.2, c=50.0)["chosen"] == "lite"
    assert (out / "quantize").resolve() == out / "students" / "lite" / "quantize"
    assert not (out / "bundle").is_symlink()
    assert (out / "students" / "lite-s" / "bundle" / "manifest.json").exists()


def test_a_refused_model_of_the_chosen_student_leaves_no_link_to_its_bundle(run, tmp_path):
    out = tmp_path / "run"
    assert run(out, 1.0, a=90.0, b=50.0, c=50.0)["chosen"] == "lite"
    assert run(out, 1.0, a=-90.0, b=50.0, c=50.0)["chosen"] == "lite"
    assert not (out / "bundle").is_symlink()
    assert run(out, 1.0, a=90.0, b=50.0, c=50.0)["chosen"] == "lite", "the next command is not refused"
    assert verify_bundle(out / "bundle")["files"]


def test_the_options_of_a_new_teacher_are_recorded_with_its_students(tmp_path, monkeypatch):
    def stages(names, config, run_dir, **_):
        for stage in names:
            (run_dir / stage).mkdir(exist_ok=True)
            write_json(run_dir / stage / "manifest.json", {"stage": stage, "outputs": {}})
            record_config(config, run_dir, stage)
        return True

    monkeypatch.setattr(students, "run_stages", stages)
    monkeypatch.setattr(students, "_row", lambda name, directory: done(name, 90.0, 1))
    monkeypatch.setattr(students, "_write", lambda *_: None)
    runtime = {"device": "cpu", "threads": 1, "precision": "fp32"}
    for epochs in (1, 2):
        config = build_config({"data": {"source": "sample"}, "teacher": {"epochs": epochs}, "runtime": runtime})
        run_students(NAMES, config, tmp_path, 0.5)
        for folder in (tmp_path, *(tmp_path / "students").iterdir()):
            assert load_json(folder / "config.json", ("teacher",))["teacher"]["epochs"] == epochs


def test_nothing_of_others_is_replaced(run, finished, tmp_path):
    config = build_config(load_json(finished / "config.json", ("distill",)))
    copied = shutil.copytree(finished, tmp_path / "one", symlinks=True)
    with pytest.raises(InputError, match="distill is the result of a run of one student and is not replaced"):
        check_students(NAMES, config, copied)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "students.json").write_text("[]")
    with pytest.raises(InputError, match=r"students\.json was not written by kdedge"):
        check_students(NAMES, config, tmp_path / "mine")
    (tmp_path / "other" / "students" / "lite" / "distill").mkdir(parents=True)
    (tmp_path / "other" / "students" / "lite" / "distill" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="distill was not written by kdedge"):
        check_students(NAMES, config, tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("distill",), "only `kdedge run-all` takes several students: name one of --student lite,lite-s"),
        (("compare",), "only `kdedge run-all` takes several students"),
        (("run-all", "--student-weights", "a.safetensors"), "are weights of one student: name one of"),
    ],
)
def test_several_students_are_for_run_all(arguments, message, tmp_path):
    result = kdedge(*arguments, "--student", "lite,lite-s", "--out", tmp_path / "run", code=2)
    assert message in " ".join(result.stderr.split())


def test_an_unknown_student_among_several_is_named(tmp_path):
    result = kdedge("run-all", "--student", "lite,lite-m", "--out", tmp_path / "run", code=2)
    assert "'lite,lite-m' (did you mean 'lite" in " ".join(result.stderr.split())
    assert build_config({"distill": {"student": "lite, lite-s"}}, flags=RUN_ALL_FLAGS).distill.student == "lite,lite-s"


@pytest.mark.parametrize("tolerance", ["-1", "101", "nan"])
def test_a_tolerance_is_a_percentage(tolerance, tmp_path):
    result = kdedge("run-all", "--student", "lite,lite-s", "--tolerance", tolerance, "--out", tmp_path / "run", code=2)
    assert f"--tolerance {tolerance} is not from 0 to 100" in result.stderr


@pytest.mark.parametrize(("options", "code"), [((), 3), (("--allow-undecided",), 0)])
def test_the_exit_code_is_that_of_the_chosen_student(options, code, finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    result = {"chosen": "lite-s", "tolerance_pp": 0.5, "students": [students._row("lite-s", out)]}
    monkeypatch.setattr(students, "check_students", lambda *_: None)
    monkeypatch.setattr(students, "run_students", lambda *_, **__: (True, result))
    stdout = kdedge("run-all", "--student", "lite,lite-s", *options, "--out", out, code=code).stdout
    assert stdout.index("lite-s is chosen") < stdout.index("Undecided: ")


def test_one_student_keeps_every_other_option():
    config = build_config({"distill": {"student": "lite,lite-s", "lr": 0.3}}, flags=RUN_ALL_FLAGS)
    assert one_student(config, "lite-s") == build_config({"distill": {"student": "lite-s", "lr": 0.3}})


@pytest.mark.slow
@pytest.mark.usefixtures("no_report_figures", "brief_search")
def test_two_students_are_trained_and_resumed(folder_data, tmp_path):
    out = tmp_path / "run"
    command = [
        "run-all",
        "--data",
        folder_data,
        *TINY,
        "--student",
        "lite-xs,lite-s",
        "--allow-undecided",
        "--out",
        out,
    ]
    stdout = kdedge(*command).stdout
    assert "lite-xs is chosen" in stdout
    assert f"kdedge predict {out / 'bundle'} IMAGE" in " ".join(stdout.split())
    image = next((folder_data / "test" / "red").iterdir())
    assert json.loads(kdedge("predict", out / "bundle", image, "--json").stdout)["label"] == "red"
    assert "nothing to do" in kdedge(*command).stderr
    assert "benchmark: up to date" in kdedge("benchmark", "--out", out, "--allow-undecided").stderr
    alone = [*command, "--student", "lite-s"]
    assert "distill: running (changed: config distill.student)" in kdedge(*alone).stderr
    assert (out / "students" / "lite-xs" / "distill" / "manifest.json").exists()
