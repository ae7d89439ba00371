"""The whole pipeline on a tiny data set: reuse, single stages, test-image discipline, kill and resume."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image
from tiny import OPTIONS, TINY, make_folder
from typer.testing import CliRunner

from kdedge.files import file_sha256
from kdedge.manifest import load_manifest
from kdedge.pipeline.cli import app
from kdedge.pipeline.data.user_images import UserImages
from kdedge.pipeline.distill.methods import METHODS

pytestmark = pytest.mark.usefixtures("no_report_figures", "brief_search")
STAGES = ("teacher", "distill", "export", "quantize", "benchmark", "bundle")


def some(*flags):
    """Return flags with their values."""
    return [part for flag in flags for part in (flag, OPTIONS[flag])]


ALL_STAGES = some("--image-size", "--val-fraction", "--threads", "--precision", "--device")
TEACHER = [part for flag in OPTIONS if flag.startswith("--teacher") for part in some(flag)]
DISTILL = some("--distill-epochs", "--distill-batch-size", "--lr", "--student", "--scan-batches")


def kdedge(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def model_hashes(run_dir):
    """SHA-256 of everything that does not hold a time."""
    hashes = {}
    for stage in ("teacher", "distill", "export", "quantize"):
        for name, digest in load_manifest(run_dir / stage)["outputs"].items():
            if not name.endswith((".csv", "candidates.json", "candidates.png")):
                hashes[f"{stage}/{name}"] = digest
    record = (run_dir / "quantize" / "candidates.json").read_text()
    hashes["candidates without times"] = re.sub(r'"(\w+_)?p50_ms": [\d.]+', "", record)
    return hashes


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run to change, or to look at while others do."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


@pytest.mark.parametrize("stage", ["quantize", "bundle"])
def test_images_that_the_student_was_not_trained_on_are_refused(stage, copied, tmp_path):
    others = make_folder(tmp_path / "others", train=30)
    before = (copied / "config.json").read_bytes()
    result = kdedge(stage, "--data", f"folder:{others}", "--out", copied, code=2)
    error = " ".join(result.stderr.split())
    assert "was trained on other data (folder:images)" in error
    assert "name its data set with --data, and its --image-size, --resize and --color, or train again" in error
    assert (copied / "config.json").read_bytes() == before


def test_run_all_leaves_every_stage_with_exactly_its_files(finished, copied):
    run_dir, stdout = finished, (finished.parent / "stdout.txt").read_text()
    files = {
        "teacher": {"teacher.safetensors", "teacher.json", "metrics.csv"},
        "distill": {"student.safetensors", "student.json", "training_log_selective.csv"},
        "export": {"student.onnx"},
        "quantize": {"student.int8.onnx", "candidates.json", "sensitivity.json", "figures"},
    }
    for stage, names in files.items():
        assert {path.name for path in (run_dir / stage).iterdir()} == names | {"manifest.json"}
    assert not [path for path in run_dir.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    bundle = run_dir / "bundle"
    sha256 = file_sha256(bundle / "manifest.json")
    assert f"kdedge verify --sha256 {sha256} {bundle}" in stdout
    assert sha256 in kdedge("bundle", "--out", copied, "--allow-undecided").stderr
    report = json.loads((run_dir / "benchmark" / "report.json").read_text())
    assert 0 < report["c"]["constant_bytes"] < report["size"]["int8_bytes"]
    assert "INT8 as C (`kdedge export-c`)" in (run_dir / "benchmark" / "report.md").read_text()
    run = report["run"]
    (command,) = run["commands"]
    assert command.startswith("kdedge run-all --data folder:images")
    assert run["commands_lack_paths"] is True


def test_the_log_of_a_distillation_has_every_term(finished):
    header = (finished / "distill" / "training_log_selective.csv").read_text().splitlines()
    assert len(header) == 4
    columns = set(header[0].split(","))
    assert {"epoch", "train_kd", "train_hint", "train_ce", "beta", "cosine_similarity", "val_top1_pct"} <= columns


def test_a_second_run_does_nothing_and_says_so(copied, folder_data):
    run_dir = copied
    before = {path: path.stat().st_mtime_ns for stage in STAGES for path in (run_dir / stage).rglob("*")}
    result = kdedge("run-all", "--data", f"folder:{folder_data}", *TINY, "--out", run_dir, "--allow-undecided")
    assert "nothing to do" in result.stderr
    assert before == {path: path.stat().st_mtime_ns for stage in STAGES for path in (run_dir / stage).rglob("*")}


def test_changing_one_option_reruns_that_stage_and_what_follows(copied, folder_data):
    run_dir = copied
    options = ["--calibration-images", "40", "--out", run_dir, "--allow-undecided"]
    log = kdedge("run-all", "--data", f"folder:{folder_data}", *TINY, *options).stderr
    for stage in ("teacher", "distill", "export"):
        assert f"{stage}: up to date, skipped" in log
    assert "quantize: running (changed: config quantize.calibration_images)" in log
    assert "benchmark: running (changed: inputs quantize/" in log
    assert "bundle: running (changed: inputs" in log


def test_a_single_stage_keeps_the_options_of_its_run_except_those_that_are_given(copied):
    for stage in ("teacher", "distill"):
        assert f"{stage}: up to date, skipped" in kdedge(stage, "--out", copied).stderr
    log = kdedge("teacher", "--teacher-epochs", 1, "--out", copied).stderr
    assert "teacher: running (changed: config teacher.epochs):" in log


def test_stages_one_by_one_give_the_same_hashes_as_run_all(finished, folder_data, tmp_path):
    run_dir = tmp_path / "single"
    kdedge("teacher", "--data", f"folder:{folder_data}", "--out", run_dir, *ALL_STAGES, *TEACHER)
    kdedge("distill", "--out", run_dir, *DISTILL)
    kdedge("export", "--out", run_dir)
    kdedge("quantize", "--out", run_dir, *some("--calibration-images"), "--no-compare-formats")
    benchmark = kdedge(
        "benchmark", "--out", run_dir, *some("--latency-seconds", "--latency-batches"), "--allow-undecided"
    )
    kdedge("bundle", "--out", run_dir, "--allow-undecided")
    assert model_hashes(run_dir) == model_hashes(finished)
    assert json.loads(benchmark.stdout.splitlines()[-1])["gate"]["verdict"] == "undecided"


def test_only_the_benchmark_reads_test_images(tiny_options, tmp_path, monkeypatch):
    readers = []
    monkeypatch.setattr(UserImages, "test", lambda self: readers.append("test") or pytest.fail("test images read"))
    run_dir = tmp_path / "run"
    kdedge("teacher", *tiny_options[:2], *ALL_STAGES, *TEACHER, "--out", run_dir)
    kdedge("distill", "--distill-epochs", 1, "--student", "lite-xs", "--out", run_dir)
    kdedge("export", "--out", run_dir)
    kdedge("quantize", "--calibration-images", 16, "--no-compare-formats", "--out", run_dir)
    assert readers == []


def test_a_bundle_is_measured_on_the_test_images_of_its_own_split(tmp_path):
    from kdedge.pipeline.commands.flags import resolve

    data = make_folder(tmp_path / "data") / "train"
    run_dir = tmp_path / "run"
    options = ["--seed", "3", "--test-fraction", "0.3"]
    kdedge("run-all", "--data", f"folder:{data}", *TINY, *options, "--out", run_dir, "--allow-undecided")
    config = resolve({"out": run_dir, "config": None, "bundle": run_dir / "bundle"}, {})
    assert (config.runtime.seed, config.data.test_fraction) == (3, 0.3)


def test_other_test_images_change_nothing_that_was_chosen(finished, tmp_path):
    data = make_folder(tmp_path / "data")
    pictures = sorted((data / "test").rglob("*.png"))
    for picture in pictures:
        picture.write_bytes(pictures[0].read_bytes())
    run_dir = tmp_path / "run"
    # One image under three labels: every model is at chance there.
    kdedge("run-all", "--data", f"folder:{data}", *TINY, "--out", run_dir, "--allow-undecided", code=3)
    assert model_hashes(run_dir) == model_hashes(finished)


def test_an_undecided_gate_ends_with_3_leaves_a_report_and_no_bundle(copied, folder_data):
    run_dir = copied
    result = kdedge("run-all", "--data", f"folder:{folder_data}", *TINY, "--out", run_dir, code=3)
    assert "--allow-undecided" in result.stderr
    assert (run_dir / "benchmark" / "report.json").exists()
    assert not (run_dir / "bundle").exists()


def test_an_undecided_gate_is_allowed_only_by_the_command_that_says_so(copied):
    kdedge("benchmark", "--out", copied, code=3)
    assert (copied / "bundle").exists()  # still that of this report
    result = kdedge("bundle", "--out", copied, code=3)
    assert "ship it as not passed with --allow-undecided" in " ".join(result.stderr.split())
    assert not (copied / "bundle").exists()
    result = kdedge("bundle", "--out", copied, "--allow-undecided")
    assert "marked as not passed" in result.stderr


def test_the_bundle_verifies_predicts_and_can_be_measured_alone(finished, folder_data, tmp_path):
    bundle = finished / "bundle"
    assert "verified" in kdedge("verify", bundle).stdout
    image = next((folder_data / "test" / "red").iterdir())
    row = json.loads(kdedge("predict", bundle, image, "--json").stdout)
    assert row["label"] in {"red", "green", "blue"}
    options = ["--latency-seconds", "0.1", "--latency-batches", "1", "--allow-undecided", "--out", tmp_path / "b"]
    result = kdedge("benchmark", bundle, *options)
    assert json.loads(result.stdout.splitlines()[-1])["accuracy"]["n"] == 45
    assert "warning" not in result.stderr
    assert json.loads((tmp_path / "b" / "report.json").read_text())["run"]["same_test_images"] is True
    altered = shutil.copytree(bundle, tmp_path / "altered")
    (altered / "labels.txt").write_text("other\n")
    assert "labels.txt" in kdedge("verify", altered, code=1).stderr


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"selective"}))
def test_every_method_trains(copied, method):
    run_dir = copied
    kdedge("distill", "--method", method, "--hint-epochs", "1", "--rechoose-epochs", "1", "--out", run_dir)
    log = (run_dir / "distill" / f"training_log_{method}.csv").read_text().splitlines()
    columns = log[0].split(",")
    assert ("train_kd" in columns) == (method != "ce")
    assert ("train_hint" in columns) == ("grad_hint_pct" in columns) == (METHODS[method].blocks is not None)
    assert {"val_kd", "val_hint", "cosine_similarity"} <= set(columns)


# A command that gets a signal in its second epoch. A parent that ignores Ctrl-C passes that on, as a shell does to what
# it runs in the background.
STOPPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from kdedge.pipeline.training import batches as training
from kdedge.pipeline.cli import app
whole = training.Batches.epoch
def epoch(batches, number, *part):
    for batch in whole(batches, number, *part):
        yield batch
        if number == 1:
            os.kill(os.getpid(), int(sys.argv.pop()))
training.Batches.epoch = epoch
app(sys.argv[1:-1])
"""


@pytest.mark.parametrize(
    ("stage", "ending"), [("teacher", signal.SIGKILL), ("distill", signal.SIGKILL), ("distill", signal.SIGINT)]
)
def test_a_stage_that_was_stopped_ends_in_the_same_weights(finished, copied, folder_data, stage, ending):
    shutil.rmtree(copied / stage)
    options = [*ALL_STAGES, *(TEACHER if stage == "teacher" else DISTILL)]
    command = [stage, "--data", f"folder:{folder_data}", *options, "--out", str(copied)]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *command, str(int(ending))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert not (copied / stage).exists(), "the stage was over before it could be stopped"
    assert (copied / f".{stage}.partial" / ".checkpoint.pt").exists()
    if ending == signal.SIGINT:
        assert done.returncode == 130
        assert done.stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
        assert "Traceback" not in done.stderr
    assert "resumed" in kdedge(*command).stderr
    assert model_hashes(copied) == model_hashes(finished)


def test_a_teacher_without_blocks_gives_no_hints_but_can_teach_a_torchvision_student(tiny_options, tmp_path):
    run_dir = tmp_path / "run"
    teacher = ["--teacher", "shufflenet_v2_x0_5", "--teacher-stem", "auto", "--teacher-epochs", "1"]
    result = kdedge("run-all", *tiny_options, *teacher, "--out", run_dir, code=2)
    error = " ".join(result.stderr.split())
    assert "shufflenet_v2_x0_5 has no blocks whose maps hints could use" in error
    assert "use --method kd, or another --teacher" in error
    options = ["--method", "kd", "--student", "mobilenet_v2", "--distill-epochs", "1", "--lr", "0.001"]
    kdedge("distill", *options, "--out", run_dir)
    facts = load_manifest(run_dir / "distill")["facts"]
    assert (facts["arch"], facts["method"], facts["hint_pairs"]) == ("mobilenet_v2", "kd", [])


def test_a_truncated_test_image_stops_the_run_before_it_trains(tmp_path):
    data = make_folder(tmp_path / "data", train=3, test=1)
    picture = data / "test" / "red" / "000.jpg"
    Image.effect_noise((64, 64), 50).save(picture)
    picture.write_bytes(picture.read_bytes()[:-600])
    result = kdedge("run-all", "--data", f"folder:{data}", *TINY, "--out", tmp_path / "run", code=2)
    assert f"cannot read the image {picture}" in " ".join(result.stderr.split())
    assert "running" not in result.stderr


def test_a_bundle_measured_on_other_test_images_says_so(finished, tmp_path):
    data = make_folder(tmp_path / "data", train=3, test=2)
    options = ["--latency-seconds", "0.1", "--latency-batches", "1", "--allow-undecided", "--out", tmp_path / "b"]
    result = kdedge("benchmark", finished / "bundle", "--data", f"folder:{data}", *options)
    assert "warning: these are not the test data" in result.stderr
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert report["c"] == json.loads((finished / "benchmark" / "report.json").read_text())["c"]
    run = report["run"]
    assert run["data"] == "folder:data"
    assert run["same_test_images"] is False
    assert "not those of the bundle" in (tmp_path / "b" / "report.md").read_text()


def test_a_device_needs_the_test_images_alone(finished, folder_data, tmp_path):
    shutil.copytree(folder_data / "test", tmp_path / "photos" / "test")
    options = ["--latency-seconds", "0.1", "--latency-batches", "1", "--allow-undecided", "--out", tmp_path / "b"]
    result = kdedge("benchmark", finished / "bundle", "--data", f"folder:{tmp_path / 'photos'}", *options)
    assert "warning" not in result.stderr
    assert json.loads((tmp_path / "b" / "report.json").read_text())["run"]["same_test_images"] is True
    result = kdedge("teacher", "--data", f"folder:{tmp_path / 'photos'}", "--out", tmp_path / "run", code=2)
    assert "has no train folder" in result.stderr


def test_two_runs_cannot_share_a_directory(tiny_options, tmp_path):
    from kdedge.pipeline.run_dir import lock_run

    with lock_run(tmp_path):
        assert "in use by another kdedge" in kdedge("teacher", *tiny_options[:2], "--out", tmp_path, code=2).stderr


def test_the_config_file_is_the_same_as_flags(finished, copied, folder_data, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(f'[data]\nsource = "folder:{folder_data}"\n[distill]\nepochs = 3\nstudent = "lite-xs"\n')
    run_dir = copied
    kdedge("distill", "--config", config, "--out", run_dir)
    assert model_hashes(run_dir) == model_hashes(finished)
    assert json.loads((run_dir / "config.json").read_text())["distill"]["epochs"] == 3


def test_resolved_configuration_is_written_to_the_run(finished):
    runtime = json.loads((finished / "config.json").read_text())["runtime"]
    assert (runtime["threads"], runtime["precision"]) == (1, "fp32")
    assert runtime["isa"] not in ("", "auto")


def test_a_stage_of_another_class_count_is_refused(copied, tmp_path):
    run_dir = copied
    data = make_folder(tmp_path / "data")
    for part in ("train", "test"):
        shutil.copytree(data / part / "red", data / part / "pink")
    result = kdedge("distill", "--data", f"folder:{data}", "--out", run_dir, code=2)
    assert "has 3 classes, the data set has 4" in result.stderr
    for part in ("train", "test"):
        shutil.rmtree(data / part / "red")
    result = kdedge("distill", "--data", f"folder:{data}", "--out", run_dir, code=2)
    assert "calls class 2 'red', the data set 'pink'" in " ".join(result.stderr.split())


def test_what_is_compared_with_a_run_reruns_its_benchmark_alone(finished, copied, folder_data, tmp_path):
    run_dir, other = copied, tmp_path / "other"
    shutil.copytree(finished / "benchmark", other)
    command = ["run-all", "--data", f"folder:{folder_data}", *TINY, "--out", run_dir, "--allow-undecided"]
    log = kdedge(*command, "--compare-with", other).stderr
    for stage in ("teacher", "distill", "export", "quantize"):
        assert f"{stage}: up to date, skipped" in log
    assert "benchmark: running (changed: config benchmark.beside, config beside)" in log
    report = json.loads((run_dir / "benchmark" / "report.json").read_text())
    assert report["student"]["train_images"] == 96
    assert {row["label"] for row in report["beside"]["rows"]} == {"lite-xs (this run)", "lite-xs (other)"}
    assert "nothing to do" in kdedge(*command, "--compare-with", other).stderr
    # The other run was measured again.
    (other / "report.json").write_text((other / "report.json").read_text().replace('"seed": 0', '"seed": 1'))
    result = kdedge("benchmark", "--out", run_dir, "--allow-undecided")
    assert "benchmark: running (changed: config beside)" in result.stderr


def test_what_cannot_be_compared_with_a_run_stops_it_before_it_trains(finished, copied, folder_data, tmp_path):
    command = ["run-all", "--data", f"folder:{folder_data}", *TINY, "--out", tmp_path / "run"]
    assert "does not exist" in kdedge(*command, "--compare-with", tmp_path / "no", code=2).stderr
    report = json.loads((finished / "benchmark" / "report.json").read_text())
    report["host"]["cpu"] = "another"
    (tmp_path / "report.json").write_text(json.dumps(report))
    log = kdedge(*command, "--compare-with", tmp_path, code=2).stderr
    assert "latencies of different hosts" in log
    assert "running" not in log
    log = kdedge("benchmark", "--out", copied, "--compare-with", f"{copied}/bundle", code=2).stderr
    assert "is this run itself" in " ".join(log.split())
