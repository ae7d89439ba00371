"""`kdedge quantize MODEL.onnx`: classifiers that kdedge did not train, rewritten, quantized and gated."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import invoke
from other_models import CLASSES, UINT8, colour_net
from PIL import Image

from kdedge.benchmarks.input_adapter import Preprocessing, open_classifier
from kdedge.benchmarks.session import open_model
from kdedge.files import file_sha256
from kdedge.inputs import image_input

BUNDLE = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "bundle"
SHORT = (
    "--calibration-images", 32, "--no-compare-formats", "--latency-seconds", 0.05, "--latency-batches", 1,
)  # fmt: skip


@pytest.fixture
def images(folder_data, tmp_path):
    shutil.copytree(folder_data, tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.usefixtures("brief_search", "plain_figures")
def test_the_command_quantizes_and_decides_the_gate(tmp_path, images):
    path = colour_net(tmp_path / "net.onnx", batch=1)
    out = tmp_path / "out"
    options = ["--data", images, "--out", out, "--calibration-images", 32, "--no-compare-formats"]
    command = ["quantize", path, "--preprocessing", "torchvision", *options]
    result = invoke(*command)
    gate = json.loads((out / "gate.json").read_text())
    assert result.exit_code == (0 if gate["gate"]["verdict"] == "passed" else 3), result.output
    assert gate["images"] == 45
    assert gate["accuracy"]["fp32_top1_pct"] > 90
    assert abs(gate["gate"]["loss_pp"]) < 5
    record = json.loads((out / "quantize" / "candidates.json").read_text())
    assert {row["type"] for row in record["float_operators"]} >= {"Sigmoid", "Mul"}
    assert "in float: 1 Sigmoid: activation, which kdedge does not quantize" in " ".join(result.output.split())
    assert record["rungs"]
    again = invoke(*command)
    assert "export: up to date, skipped" in again.output
    assert "quantize: up to date, skipped" in again.output
    models = [out / "export" / "student.onnx", out / "quantize" / "student.int8.onnx"]
    assert invoke("gate", *models, "--data", images, "--limit-pp", 50).exit_code == 0
    original = ["gate", path, models[1], "--preprocessing", "torchvision", "--data", images, "--limit-pp", 50]
    assert invoke(*original).exit_code == 0
    (out / "distill").mkdir()
    assert "has a student that kdedge trained" in invoke(*command).output


@pytest.mark.usefixtures("brief_search", "plain_figures")
def test_other_weights_next_to_the_same_file_are_another_model(tmp_path, images):
    path = colour_net(tmp_path / "net.onnx", save_as_external_data=True, size_threshold=100, location="net.data")
    command = ["quantize", path, "--preprocessing", "torchvision", "--data", images, "--out", tmp_path / "out",
               "--calibration-images", 32, "--no-compare-formats"]  # fmt: skip
    invoke(*command)
    model, before = tmp_path / "out" / "quantize" / "student.int8.onnx", path.read_bytes()
    quantized, weights = model.read_bytes(), np.fromfile(tmp_path / "net.data", np.float32)
    (weights * np.float32(0.5)).tofile(tmp_path / "net.data")  # the same graph, trained again
    assert "export: running (changed: config weights)" in invoke(*command).output
    assert path.read_bytes() == before
    assert model.read_bytes() != quantized


@pytest.mark.usefixtures("brief_search", "plain_figures")
def test_another_image_size_of_a_model_that_takes_any_is_another_model(tmp_path, images):
    path = colour_net(tmp_path / "net.onnx", activation="Relu")
    model = onnx.load(path)
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "side"
    onnx.save(model, path)
    command = ["quantize", path, "--preprocessing", "torchvision", "--data", images, "--out", tmp_path / "out"]
    for size in (16, 24):
        done = invoke(*command, "--image-size", size, "--calibration-images", 32, "--no-compare-formats")
        assert done.exit_code == 3, done.output
        assert open_model(tmp_path / "out" / "quantize" / "student.int8.onnx").spec.size == size


def kdedge_model(path, classes):
    """Write a model with the metadata of kdedge."""
    model = onnx.load(colour_net(path, activation="Relu", kind=UINT8, layout="NHWC"))
    known = {"classes": classes, "preprocessing": image_input(16, "pad").as_json()}
    onnx.helper.set_model_props(model, {f"kdedge.{key}": json.dumps(value) for key, value in known.items()})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("options", "resize"), [([], "pad"), (["--resize", "crop"], "crop")])
def test_a_model_of_kdedge_has_its_own_resize(tmp_path, images, monkeypatch, options, resize):
    taken = []
    monkeypatch.setattr(
        "kdedge.pipeline.quantize_other.quantize_other",
        lambda model, floats, config, out, **again: taken.append(config.data.resize) or sys.exit(0),
    )
    invoke("quantize", kdedge_model(tmp_path / "net.onnx", CLASSES), "--data", images, *options)
    assert taken == [resize]


def test_the_class_names_of_a_model_of_kdedge_are_those_of_the_images(tmp_path, images):
    path = kdedge_model(tmp_path / "net.onnx", ("blue", "red", "green"))
    result = invoke("quantize", path, "--data", images, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "net.onnx calls class 1 'red', the data set 'green' -> use images of the classes" in " ".join(
        result.output.split()
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("brief_search", "plain_figures")
def test_the_bundle_has_the_preprocessing_of_the_model(tmp_path, images):
    path, out = colour_net(tmp_path / "net.onnx", batch=1, layout="NHWC"), tmp_path / "out"
    options = ["--mean", "0.5", "--std", "0.25,0.5,0.5", "--resize", "crop-0.8-bicubic"]
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25, 0.5, 0.5), resize_mode="crop-0.8-bicubic")
    done = invoke("quantize", path, *options, "--data", images, "--out", out, "--limit-pp", 30, *SHORT)
    assert done.exit_code == 0, done.output
    sha256 = file_sha256(out / "bundle" / "manifest.json")
    assert f"kdedge verify --sha256 {sha256} {out / 'bundle'}\n" in done.stdout
    report = json.loads((out / "benchmark" / "report.json").read_text())
    assert (report["student"]["arch"], report["student"]["adopted"]) == ("net", "net.onnx")
    assert report["student"]["macs"] > 6 * 27 * 16**2
    assert report["gate"]["limit_pp"] == 30
    assert "| 1 | Sigmoid | activation, which kdedge does not quantize |" in (out / "benchmark/report.md").read_text()
    bundle = out / "bundle"
    assert "from the file `net.onnx`, which kdedge did not train" in (bundle / "MODEL_CARD.md").read_text()
    assert json.loads((bundle / "manifest.json").read_text())["facts"]["history"]["weights"].keys() == {"net.onnx"}
    assert invoke("verify", bundle).exit_code == 0

    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 61, 3), np.uint8)).save(photo)
    classifier = open_classifier(path)
    pixels = preprocessing.pixels(Image.open(photo), 16)[None]
    logits = classifier.logits(pixels, preprocessing, 3)[0]
    expected = float(np.exp(logits - logits.max()).max() / np.exp(logits - logits.max()).sum())
    script = [sys.executable, bundle / "predict.py", photo, "--fp32"]
    alone = subprocess.run(script, capture_output=True, text=True, check=True)
    answers = [json.loads(alone.stdout), json.loads(invoke("predict", "--json", "--fp32", bundle, photo).stdout)]
    for answer in answers:
        assert answer["label"] == CLASSES[logits.argmax()]
        assert answer["probability"] == pytest.approx(expected, abs=1e-3)
    assert "did not train: it has no stage teacher" in invoke("run-all", "--out", out, "--data", images).output


@pytest.mark.qemu
@pytest.mark.usefixtures("brief_search", "plain_figures")
def test_the_report_of_the_model_has_other_cpus(tmp_path, images):
    path, out = colour_net(tmp_path / "net.onnx"), tmp_path / "out"
    options = ["--preprocessing", "torchvision", "--emulate", "haswell", "--emulate-images", 16, "--limit-pp", 30]
    done = invoke("quantize", path, *options, "--data", images, "--out", out, *SHORT)
    assert done.exit_code == 0, done.output
    (row,) = json.loads((out / "benchmark" / "report.json").read_text())["portability"]["emulated"]
    assert (row["cpu"], row["images"], row["flips"], row["max_abs_diff"]) == ("haswell", 16, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "takes floats, and the file does not describe the preprocessing"),
        (["--preprocessing", "keras", "--image-size", "32"], "--image-size 32 differs from the 16 pixels"),
        (["--preprocessing", "keras", "--color", "grey"], "--color grey is for a student of a run"),
    ],
)
def test_options_that_do_not_fit(tmp_path, images, options, message):
    path = colour_net(tmp_path / "net.onnx")
    result = invoke("quantize", path, "--data", images, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_quantized_model_is_refused(tmp_path, images):
    result = invoke("quantize", BUNDLE / "student.int8.onnx", "--data", images, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "student.int8.onnx is already quantized -> give the FP32 model" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_the_layout_of_a_model_that_does_not_show_it(tmp_path, images, monkeypatch):
    path = colour_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"
    onnx.save(model, path)
    taken = []
    monkeypatch.setattr(
        "kdedge.pipeline.quantize_other.quantize_other",
        lambda model, *_, **again: taken.append((model.layout, model.image_size)) or sys.exit(0),
    )
    command = ["quantize", path, "--preprocessing", "torchvision", "--data", images, "--out", tmp_path / "out"]
    assert "the layout is not clear -> give --layout NCHW or" in " ".join(invoke(*command).output.split())
    assert invoke(*command, "--layout", "nchw").exit_code == 0
    assert taken == [("NCHW", 16)]


def test_another_model_does_not_take_the_options_of_the_default_run(tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts" / "run").mkdir(parents=True)
    (tmp_path / "artifacts" / "run" / "config.json").write_text('{"data": {"source": "folder:missing"}}')
    taken = []
    monkeypatch.setattr(
        "kdedge.pipeline.quantize_other.quantize_other",
        lambda model, floats, config, out, **again: taken.append((config.data.source, str(out))) or sys.exit(0),
    )
    command = ["quantize", colour_net(tmp_path / "net.onnx"), "--preprocessing", "torchvision"]
    invoke(*command)
    invoke(*command, "--out", "artifacts/run")
    assert taken == [("cifar10", "artifacts/net"), ("folder:missing", "artifacts/run")]


@pytest.mark.parametrize("option", [("--mean", "0.5"), ("--emulate", "haswell"), ("--allow-undecided",)])
def test_options_of_a_model_need_one(tmp_path, option):
    result = invoke("quantize", "--out", tmp_path, *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for a MODEL.onnx that kdedge did not train" in " ".join(result.output.split())


@pytest.mark.usefixtures("brief_search", "plain_figures")
def test_an_undecided_gate_writes_a_bundle_only_if_allowed(tmp_path, images):
    path, out = colour_net(tmp_path / "net.onnx", activation="Relu"), tmp_path / "out"
    command = ["quantize", path, "--preprocessing", "torchvision", "--data", images, "--out", out, *SHORT]
    done = invoke(*command)
    assert done.exit_code == 3
    assert "or ship it as not passed with --allow-undecided" in " ".join(done.output.split())
    assert json.loads((out / "gate.json").read_text())["gate"]["verdict"] == "undecided"
    assert not (out / "benchmark").exists()
    done = invoke(*command, "--allow-undecided")
    assert done.exit_code == 0, done.output
    assert (out / "bundle" / "manifest.json").is_file()
    done = invoke(*command, "--no-allow-undecided")
    assert done.exit_code == 3
    assert f"moved to {out / 'bundle.previous'}" in done.output.replace("\n", " ")
    assert not (out / "bundle").exists()
