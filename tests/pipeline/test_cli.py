"""What a user sees: help, exit codes, one clear message and never a traceback."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from command_line import invoke
from PIL import Image
from typer.testing import CliRunner

from kdedge.errors import StageError
from kdedge.pipeline.cli import app
from kdedge.pipeline.config import Config
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.run import record_config, recorded_config
from kdedge.pipeline.training.options import RuntimeConfig

BUNDLE = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "bundle"


@pytest.mark.parametrize(("short", "field"), [("seconds", "0"), ("threads", "0"), ("batches", "0")])
def test_benchmark_takes_its_options_without_a_prefix(short, field):
    result = CliRunner().invoke(app, ["benchmark", str(BUNDLE), "--data", "sample", f"--{short}", field])
    assert result.exit_code == 2
    assert "No such option" not in result.output
    assert f"--latency-{short}" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distill-epochs", "-2"], "--distill-epochs ([distill] epochs) = -2 is out of range: expected at least -1"),
        (["--latency-batches", "1,abc"], "'abc' is not a whole number from 1 to 4096"),
        (["--method", "static", "--distill-epochs", "3"], "5 hint-only epochs (--hint-epochs) leave none of 3"),
        (["--threads", "2000000000"], "--threads ([runtime] threads) = 2000000000 is out of range"),
        (["--data", "folder:~nobody-of-this-name/x"], "cannot be used"),
        (["--method", "selectiv"], "did you mean 'selective'"),
        (["--data", "cifar100"], "unknown data set --data cifar100"),
        (["--data", "folder:/does/not/exist"], "/does/not/exist"),
        (["--data-dir", "/does/not/exist"], "/does/not/exist"),
        (["--preset", "quick"], "unknown preset 'quick'"),
        (["--preset", ""], "--preset is empty"),
        (["--out", ""], "--out is empty"),
        (["--data", "sample", "--data-dir", "/tmp"], "--data-dir ([data] dir) is for --data cifar10"),
        (["--config", "/does/not/exist.toml"], "cannot read the configuration /does/not/exist.toml"),
        (["--data", "sample", "--teacher", "resnet19"], "unknown teacher 'resnet19' (did you mean"),
        (["--data", "sample", "--teacher-weights", "/no.pth"], "weights /no.pth do not exist"),
        (["--data", "sample", "--teacher-weights", "https://host/w.pth"], "https://host/w.pth: expected a local file"),
        (["--data", "sample", "--teacher-weights", "none", "--teacher-epochs", "0"], "leaves the teacher random"),
        # Found before the teacher is trained.
        (["--data", "sample", "--student-weights", "/no.safetensors"], "weights /no.safetensors do not exist"),
        (["--data", "sample", "--distill-epochs", "0"], "name them with --student-weights"),
        (["--student", "huge"], "--student ([distill] student) = 'huge': expected one of lite, lite-s, lite-xs"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_clear_message_with_exit_code_2(arguments, message, tmp_path):
    result = invoke("run-all", "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (["distill", "--distill-epochs", "abc"], "--distill-epochs", "distill"),
        (["run-all", "--lr", "fast"], "--lr", "run-all"),
        (["distill", "--preset", "reference"], "--preset", "distill"),
        (["verify"], "bundle", "verify"),
        (["verfy"], "verfy", ""),
    ],
)  # fmt: skip
def test_what_typer_finds_wrong_looks_like_every_other_error(arguments, message, command):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.endswith(f"{command} --help`")


def test_kdedge_alone_shows_its_help():
    result = invoke()
    assert result.exit_code == 2
    assert result.output.count("run-all") == invoke("--help").output.count("run-all")
    assert "error" not in result.output


def test_missing_data_are_found_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("kdedge.pipeline.training.device.resolve", lambda *_: pytest.fail("timed a training step"))
    result = invoke("run-all", "--data", "folder:/does/not/exist", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "/does/not/exist does not exist" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run-all", "--data", "sample"], "interrupted; run the same command again to resume"),
        (["verify", "."], "interrupted"),
        (["predict", ".", "x.png"], "interrupted"),
        (["doctor"], "interrupted"),
    ],
)
def test_an_interrupt_is_one_line_that_fits_the_command(arguments, message, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for target in (
        "kdedge.pipeline.run.run_stages",
        "kdedge.export.bundle.verify.verify_bundle",
        "kdedge.export.bundle.predict.predict",
    ):
        monkeypatch.setattr(target, interrupt)
    monkeypatch.setattr("kdedge.benchmarks.host.doctor", interrupt)
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [message]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_too_little_memory_is_one_clear_error(error, tmp_path, monkeypatch):
    monkeypatch.setattr("kdedge.pipeline.run.run_stages", lambda *_, **__: (_ for _ in ()).throw(error))
    result = invoke("run-all", "--data", "sample", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: not enough memory\n")


def test_a_path_that_the_system_refuses_is_one_clear_error():
    result = invoke("predict", BUNDLE, "x" * 300 + ".jpg")
    assert result.exit_code == 1
    assert "File name too long" in " ".join(result.stderr.split())


def test_what_the_system_refuses_without_a_path_is_no_bad_input(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("kdedge.pipeline.run.run_stages", lambda *_, **__: (_ for _ in ()).throw(full))
    result = invoke("run-all", "--data", "sample", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr == "error: system error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("command", ["--help", "gate --plan"])
def test_a_full_disk_under_the_output_is_one_line(command):
    line = f'"$1" -m kdedge {command} > /dev/full'
    done = subprocess.run(["sh", "-c", line, "sh", sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: system error: [Errno 28] No space left on device\n")


def test_a_bundle_in_a_folder_whose_name_is_not_utf8(tmp_path):
    bundle = shutil.copytree(BUNDLE, tmp_path / os.fsdecode(b"odd \xff"))
    done = subprocess.run([sys.executable, "-m", "kdedge", "verify", bundle], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_text_that_the_encoding_of_the_output_lacks_is_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "kdedge", "doctor"]
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert b"Traceback" not in result.stderr
    assert b"\\u" in result.stdout


@pytest.mark.parametrize("what", ["nosuch", "run"])
def test_what_is_no_bundle_is_called_so(what, tmp_path):
    (tmp_path / "run").mkdir()
    result = invoke("benchmark", tmp_path / what)
    assert result.exit_code == 2
    assert "bundle" in result.stderr
    assert "kdedge bundle" in result.stderr


def test_a_report_does_not_go_into_the_bundle_itself():
    result = invoke("benchmark", BUNDLE, "--out", BUNDLE / "new")
    assert result.exit_code == 2
    assert "is inside the bundle" in " ".join(result.stderr.split())
    assert not (BUNDLE / "new").exists()


def test_other_errors_of_the_runtime_are_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("kdedge.pipeline.run.run_stages", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
    assert isinstance(invoke("run-all", "--data", "sample", "--out", tmp_path / "run").exception, RuntimeError)


@pytest.mark.parametrize("command", [["data", "--data", "sample"], ["doctor"], ["--help"]])
def test_a_reader_that_goes_away_ends_the_command_quietly(command):
    read, write = os.pipe()
    os.close(read)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-m", "kdedge", *command], stdout=write, stderr=subprocess.PIPE, text=True,
        env=environment, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["verify {bundle}", "predict {bundle} {bundle}/golden_inputs.npy", "--help"])
def test_a_closed_stream_is_no_failure(closed, command, tmp_path):
    line = f'"$1" -m kdedge.pipeline.cli {command.format(bundle=shlex.quote(str(BUNDLE)))} {closed}'
    done = subprocess.run(["sh", "-c", line, "sh", sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">" not in closed)


def test_answers_stand_before_the_error_that_ends_them(tmp_path):
    image = tmp_path / "good.png"
    Image.new("RGB", (32, 32)).save(image)
    command = [sys.executable, "-m", "kdedge", "predict", BUNDLE, image, tmp_path / "bad.png"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    answer, error = done.stdout.splitlines()
    assert answer.endswith("good.png")
    assert error.startswith("error: ")


def test_it_works_without_a_home():
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "KDEDGE_CACHE")}
    code = "from kdedge import files; from kdedge.pipeline.cli import app; files.cache_dir(); app()"
    command = [sys.executable, "-c", code, "data", "--data", "sample"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_cuda_where_there_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = invoke("teacher", "--data", "sample", "--device", "cuda", "--out", tmp_path)
    assert result.exit_code == 2
    assert "finds no CUDA device" in result.stderr


def test_a_run_that_a_gpu_made_is_left_as_it_is_by_training_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = Config(runtime=RuntimeConfig(device="cuda", threads=3, precision="bf16", isa="another"))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(made)))
    result = invoke("teacher", "--data", "sample", "--threads", "1", "--out", tmp_path)
    assert result.exit_code == 2
    assert "finds no CUDA device" in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["runtime"]["threads"] == 3


@pytest.mark.parametrize(
    ("stage", "needs"), [("distill", "teacher"), ("export", "distill"), ("quantize", "export"), ("bundle", "teacher")]
)
def test_a_stage_without_the_one_before_it_names_the_command_to_run(stage, needs, tmp_path):
    result = invoke(stage, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"kdedge {needs} --out {tmp_path / 'run'}" in " ".join(result.stderr.split())


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("teacher", "--data", "sample", "--out", tmp_path / "file" / "run", "--device", "cpu")
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


def test_data_prints_what_there_is_as_json():
    facts = json.loads(invoke("data", "--data", "sample").stdout)
    assert (facts["train"], facts["val"]) == (3600, 400)
    assert len(facts["classes"]) == 10


def test_doctor_says_how_to_add_an_extra_to_this_copy():
    text = "".join(invoke("doctor").stdout.split())
    assert f"pipinstall-e'{Path(__file__).resolve().parents[2]}[EXTRA]'" in text


def test_doctor_speaks_json_and_text():
    assert invoke("doctor").exit_code == 0
    facts = json.loads(invoke("doctor", "--json").stdout)
    assert facts


def test_doctor_says_whether_a_bundle_or_model_was_made_for_this_host():
    for artifact, name in ((BUNDLE, "student.int8.onnx"), (BUNDLE / "student.onnx", "student.onnx")):
        check = json.loads(invoke("doctor", artifact, "--json").stdout)["checks"][0]
        assert (check["name"], check["status"]) == ("artifact", "ok")
        assert re.match(rf"{name} (was made for every CPU|has no target CPU)", check["detail"])
        assert check["detail"][:30] in invoke("doctor", artifact).stdout
    assert "artifact" not in [check["name"] for check in json.loads(invoke("doctor", "--json").stdout)["checks"]]


def test_doctor_refuses_what_is_neither_bundle_nor_model(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for artifact, message in (
        (tmp_path, "is not a bundle: manifest.json is missing"),
        (BUNDLE.parent / "quantize", "holds the stage 'quantize', not a bundle"),
        (tmp_path / "none.onnx", "no model at"),
        (tmp_path / "text.onnx", "is not a usable ONNX model"),
    ):
        result = invoke("doctor", artifact)
        assert result.exit_code == 2, artifact
        assert message in " ".join(result.stderr.split())
        assert result.stdout == ""
    assert "check the path" in invoke("doctor", tmp_path / "none").stderr


@pytest.mark.parametrize(("name", "folder"), [("quantize", "artifacts/MODEL"), ("benchmark", "artifacts/benchmark")])
def test_the_help_names_the_folder_of_a_model_or_bundle(name, folder):
    commands = typer.main.get_command(app).commands
    (out,) = (item for item in commands[name].params if item.name == "out")
    assert "Default: artifacts/run, or " + folder in out.help


def test_emulators_are_checked_before_anything_is_trained(tmp_path, monkeypatch):
    def missing(cpus):
        assert list(cpus) == ["haswell"]
        raise StageError("no qemu")

    monkeypatch.setattr("kdedge.pipeline.stages.benchmark_setup.check_emulators", missing)
    monkeypatch.setattr("kdedge.pipeline.training.device.resolve", lambda *_: pytest.fail("timed a training step"))
    result = invoke("run-all", "--data", "sample", "--emulate", "haswell", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "no qemu" in result.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"runtime": [1]}', '{"runtime": {"precision": "fp99"}}', '{"new": {}}'])
def test_a_damaged_recorded_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    result = invoke("export", "--out", tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path / "config.json") in result.stderr
    assert "Traceback" not in result.output


def test_a_new_teacher_of_signals_may_be_recorded_with_the_finished_student_of_images(tmp_path):
    images = build_config({"data": {"source": "sample"}})
    signals = build_config({"data": {"source": "windows:recordings"}})
    for stage in ("teacher", "distill"):
        record_config(images, tmp_path, stage)
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "manifest.json").write_text(json.dumps({"stage": stage, "outputs": {}}))
    record_config(signals, tmp_path, "teacher")
    known = recorded_config(tmp_path)
    assert (known["data"]["source"], known["distill"]["student"]) == ("windows:recordings", "lite")
    record_config(signals, tmp_path, "distill")
    assert recorded_config(tmp_path)["distill"]["student"] == "signal"


def test_a_configuration_that_fails_early_does_not_replace_that_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"source": "sample"}}')
    invoke("run-all", "--data", "folder:/does/not/exist", "--device", "cpu", "--precision", "fp32", "--out", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"data": {"source": "sample"}}


def test_verify_and_predict_refuse_what_is_no_bundle(tmp_path):
    for command in (["verify", tmp_path], ["predict", tmp_path, tmp_path / "x.png"]):
        result = invoke(*command)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
