"""`kdedge quantize MODEL.onnx`: classifiers that kdedge did not train, rewritten, quantized and gated."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from command_line import invoke
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kdedge.benchmarks.emulate.emulator import CPUS, emulate
from kdedge.benchmarks.input_adapter import PREPROCESSING, Preprocessing, open_classifier
from kdedge.errors import InputError
from kdedge.export.adopt import adopt_model
from kdedge.export.graph import count_macs, read_model
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.float_reasons import float_operators
from kdedge.export.quantize.proof import integer_proof
from kdedge.export.quantize.quantizer import OP_TYPES, Quantizer, _without_range

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
CLASSES = ("blue", "green", "red")
SHORT = (
    "--calibration-images", 32, "--no-compare-formats", "--latency-seconds", 0.05, "--latency-batches", 1,
)  # fmt: skip


def colour_net(
    path,
    *,
    batch=None,
    layout="NCHW",
    kind=FLOAT,
    opset=18,
    activation="HardSwish",
    last="Gemm",
    norm=False,
    ir=0,
    **save,
):
    """Write a classifier whose largest logit is that of the strongest colour, with padding, branches and a mean."""
    rng = np.random.default_rng(0)
    first = np.zeros((6, 3, 3, 3), np.float32)
    first[range(6), [0, 1, 2, 0, 1, 2], 1, 1] = 1
    values = {
        "w1": first + rng.normal(0, 0.01, first.shape).astype(np.float32),
        "b1": np.full(6, 0.2, np.float32),
        "w2": np.eye(6, dtype=np.float32)[:, :, None, None],
        "w3": 10 * np.array([[0, 0, 1] * 2, [0, 1, 0] * 2, [1, 0, 0] * 2], np.float32),
        "b3": np.zeros(3, np.float32),
        "shape": np.array([batch or -1, 6], np.int64),
    }
    nodes = []
    tensor = "image"

    def add(kind_, inputs, out, **attributes):
        nodes.append(helper.make_node(kind_, inputs, [out], **attributes))  # without names
        return out

    if kind == UINT8:
        tensor = add("Cast", [tensor], "cast", to=FLOAT)
        values["by"] = np.float32(1 / 255)
        tensor = add("Mul", [tensor, "by"], "scaled")
    if layout == "NHWC":
        tensor = add("Transpose", [tensor], "nchw", perm=[0, 3, 1, 2])
    tensor = add("Conv", [tensor, "w1", "b1"], "conv1", pads=[1] * 4)
    tensor = add(activation, [tensor], "act1")
    if norm:  # not behind a convolution
        values |= {"one": np.ones(6, np.float32), "zero": np.zeros(6, np.float32)}
        tensor = add("BatchNormalization", [tensor, "one", "zero", "zero", "one"], "norm")
    gate = add("Sigmoid", [add("Conv", [add("GlobalAveragePool", [tensor], "pool"), "w2"], "squeeze")], "gate")
    tensor = add("Mul", [tensor, gate], "scaled_by_gate")
    values["axes"] = np.array([2, 3], np.int64)
    axes = {"axes": [2, 3]} if opset < 18 else {}
    if batch == 4:  # a slice whose shape no inference knows, as of shuffled channels
        values |= {"start": np.int64([0]), "half": np.int64([3]), "two": np.int64([2]), "channel": np.int64([1])}
        tensor = add("Slice", [tensor, "start", add("Mul", ["half", "two"], "end"), "channel"], "slice")
        values["groups"] = np.int64([4, 2, 3, 16, 16])
        tensor = add("Reshape", [tensor, "groups"], "grouped")
        values["most"] = np.int64(64)
        sides = add("Clip", [add("Shape", ["scaled_by_gate"], "shape_of"), "", "most"], "sides")
        tensor = add("Relu", [add("Relu", [add("Reshape", [tensor, sides], "ungrouped")], "relu1")], "relu2")
    tensor = add("ReduceMean", [tensor] if axes else [tensor, "axes"], "mean", keepdims=1, **axes)
    tensor = add("Reshape", [tensor, "shape"], "flat")
    if last == "Gemm":
        add("Gemm", [tensor, "w3", "b3"], "scores", transB=1)
    else:
        add("Softmax", [add("Gemm", [tensor, "w3", "b3"], "sums", transB=1)], "scores", axis=1)
    sides = [3, 16, 16] if layout == "NCHW" else [16, 16, 3]
    graph = helper.make_graph(
        nodes, "colours",
        [helper.make_tensor_value_info("image", kind, [batch or "N", *sides])],
        [helper.make_tensor_value_info("scores", FLOAT, [batch or "N", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    ir_version = ir or (7 if opset < 15 else 10)
    if ir == 3:  # lists the weights among the inputs
        values_of = {name: np.asarray(value) for name, value in values.items()}
        kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in values_of.items()}
        graph.input.extend(
            helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in values_of.items()
        )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path, **save)
    return path


def adopted(path, target, name="torchvision", **options):
    metrics = adopt_model(open_classifier(path), PREPROCESSING[name], CLASSES, target, resize_mode="squeeze", **options)
    assert metrics["max_abs_diff"] < 1e-4
    assert metrics["macs"] == 6 * 27 * 16**2 + 6 * 6 + 6 * 3 + (name == "torchvision") * 3 * 16**2
    return read_model(target)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 1},
        {"batch": 4, "opset": 22},
        {"layout": "NHWC", "opset": 17},
        {"kind": UINT8, "layout": "NHWC"},
        {"kind": UINT8, "batch": 1, "opset": 14, "activation": "HardSwish"},
        {"opset": 13, "activation": "Relu"},
        {"opset": 20, "activation": "Gelu", "last": "Softmax"},
        {"save_as_external_data": True, "size_threshold": 100},
        {"norm": True, "ir": 3, "opset": 13, "activation": "Relu"},
    ],
    ids=["batch 1", "batch 4", "nhwc", "uint8", "uint8 batch 1", "opset 13", "gelu", "external data", "ir 3"],
)
def test_models_are_rewritten_and_run_as_integers(tmp_path, options):
    model = adopted(colour_net(tmp_path / "model.onnx", **options), tmp_path / "student.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    quantizer = Quantizer.from_model(model, pixels)
    proof = integer_proof(quantizer.build(Candidate(calibration_images=32)))
    assert proof["integer_convs"] >= 3 - (options.get("kind") == UINT8)
    assert proof["integer_gemms"] == 1
    assert not proof["float_convs"]
    reasons = {row["type"]: row["cause"] for row in float_operators(proof, OP_TYPES, ())}
    assert (reasons["Sigmoid"], reasons["Mul"]) == ("activation", "gate")
    assert reasons.keys().isdisjoint({"Conv", "Gemm", "ReduceMean", "GlobalAveragePool", "BatchNormalization"})


def test_models_that_cannot_be_rewritten_are_refused(tmp_path):
    path = colour_net(tmp_path / "model.onnx", batch=2)
    model = onnx.load(path)
    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    model.graph.node.insert(
        list(model.graph.node).index(reshape), helper.make_node("Add", ["mean", "two"], ["per_image"])
    )
    reshape.input[0] = "per_image"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 6, 1, 1), np.float32), "two"))
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"model\.onnx cannot be rewritten for any batch"):
        adopted(path, tmp_path / "student.onnx")


def test_float16_is_refused(tmp_path):
    model = onnx.load(colour_net(tmp_path / "model.onnx"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    next(node for node in model.graph.node if "image" in node.input).input[0] = "wide"
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["wide"], to=FLOAT))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="takes float16; expected float or uint8"):
        adopted(tmp_path / "model.onnx", tmp_path / "student.onnx")


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
def test_the_bundle_has_the_preprocessing_of_the_model(tmp_path, images):
    path, out = colour_net(tmp_path / "net.onnx", batch=1, layout="NHWC"), tmp_path / "out"
    options = ["--mean", "0.5", "--std", "0.25,0.5,0.5", "--resize", "crop-0.8-bicubic"]
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25, 0.5, 0.5), resize_mode="crop-0.8-bicubic")
    done = invoke("quantize", path, *options, "--data", images, "--out", out, "--limit-pp", 30, *SHORT)
    assert done.exit_code == 0, done.output
    assert f"kdedge verify {out / 'bundle'}" in done.stdout
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
@pytest.mark.parametrize("activation", ["HardSwish", "Gelu"])
def test_other_cpus_return_the_same_bits(tmp_path, activation):
    model = adopted(colour_net(tmp_path / "net.onnx", opset=20, activation=activation), tmp_path / "student.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    path = tmp_path / "int8.onnx"
    path.write_bytes(Quantizer.from_model(model, pixels).build(Candidate(calibration_images=32)))
    for cpu in CPUS:
        result = emulate(path, pixels, cpu)
        assert (result.flipped, result.max_abs_diff) == ((), 0), cpu


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


def insert(graph, tensor, nodes):
    """Insert nodes, of which the last makes ``back``, between a tensor and those that read it."""
    old = list(graph.node)
    for node in old:
        for index, name in enumerate(node.input):
            node.input[index] = "back" if name == tensor else name
    place = next(index for index, node in enumerate(old) if tensor in node.output) + 1
    del graph.node[:]
    graph.node.extend([*old[:place], *nodes, *old[place:]])


def test_shuffled_channels_stay_integers(tmp_path):
    path = tmp_path / "net.onnx"
    model = onnx.load(colour_net(path, activation="Relu"))
    nodes = [
        helper.make_node("Split", ["act1"], ["first", "second"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["second", "first"], ["back"], axis=1),
    ]
    insert(model.graph, "act1", nodes)
    onnx.save(model, path)
    model = adopted(path, tmp_path / "student.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    proof = integer_proof(Quantizer.from_model(model, pixels).build(Candidate(calibration_images=32)))
    assert {node["type"] for node in proof["float_nodes"]} == {"Sigmoid", "Mul"}


@pytest.mark.parametrize("batch", [1, 2])
def test_windows_of_a_fixed_batch_are_freed(tmp_path, batch):
    """As EfficientViT-M and Swin do: windows become images of a larger batch and come back."""
    path = tmp_path / "net.onnx"
    model = onnx.load(colour_net(path, batch=batch, activation="Relu"))
    shapes = {
        "split": [batch, 6, 2, 8, 2, 8], "windows": [batch * 4, 6, 8, 8],
        "grid": [batch, 2, 2, 6, 8, 8], "whole": [batch, 6, 16, 16],
    }  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["act1", "split"], ["win1"]),
        helper.make_node("Transpose", ["win1"], ["win2"], perm=[0, 2, 4, 1, 3, 5]),
        helper.make_node("Reshape", ["win2", "windows"], ["win3"]),
        helper.make_node("Relu", ["win3"], ["win4"]),
        helper.make_node("Reshape", ["win4", "grid"], ["win5"]),
        helper.make_node("Transpose", ["win5"], ["win6"], perm=[0, 3, 1, 4, 2, 5]),
        helper.make_node("Reshape", ["win6", "whole"], ["back"]),
    ]
    insert(model.graph, "act1", nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.int64(shape), name) for name, shape in shapes.items())
    onnx.save(model, path)
    adopted(path, tmp_path / "student.onnx")


def test_operators_on_computed_shapes_are_not_quantized():
    nodes = [
        helper.make_node("Add", ["padding", "one"], ["sum"], name="of integers"),
        helper.make_node("Reshape", ["features", "sum"], ["logits"], name="of floats"),
    ]
    one = numpy_helper.from_array(np.int64([1]), "one")
    graph = helper.make_graph(nodes, "graph", [], [], [one])
    assert _without_range(graph, dict.fromkeys(("features", "logits"), (0.0, 1.0))) == ["of integers"]


def amplifying_net(path, factor=1e5):
    """Write a network with the sine of ``factor`` times a batch norm, so that the rounding of its sums matters."""
    rng = np.random.default_rng(0)
    values = {
        "weight": rng.normal(0, 0.2, (8, 3, 3, 3)),
        **{f"norm.{name}": rng.uniform(0.5, 2, 8) for name in ("scale", "bias", "mean", "variance")},
        "factor": factor,
        "classes": rng.normal(0, 1, (3, 8)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["conv"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv", *list(values)[1:5]], ["norm"]),
        helper.make_node("Mul", ["norm", "factor"], ["large"]),
        helper.make_node("Sin", ["large"], ["sin"]),
        helper.make_node("GlobalAveragePool", ["sin"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "classes"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "sines",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return open_classifier(path)


def test_a_network_may_differ_by_its_own_rounding(tmp_path, capsys, monkeypatch):
    source, target = amplifying_net(tmp_path / "net.onnx"), tmp_path / "student.onnx"
    preprocessing = PREPROCESSING["torchvision"]
    metrics = adopt_model(source, preprocessing, CLASSES, target, resize_mode="squeeze")
    assert metrics["max_abs_diff"] > 1e-4
    assert "net.onnx amplifies rounding: its own logits change by up to" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("kdedge.export.adopt._without_fusions", lambda source: source)
    with pytest.raises(InputError, match=r"net\.onnx rewritten for any batch computes other logits"):
        adopt_model(source, preprocessing, CLASSES, target, resize_mode="squeeze")


def test_multiply_accumulates_of_computed_shapes_are_counted():
    """Shape inference does not know the height behind a slice whose end is computed from the input."""
    values = {"two": np.int64([2]), "zero": np.int64([0]), "w": np.zeros((5, 3, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["nchw"], ["height"], start=2, end=3),
        helper.make_node("Cast", ["height"], ["float"], to=FLOAT),
        helper.make_node("Sqrt", ["float"], ["root"]),
        helper.make_node("Cast", ["root"], ["end"], to=TensorProto.INT64),
        helper.make_node("Slice", ["nchw", "zero", "end", "two"], ["top"]),
        helper.make_node("Conv", ["top", "w"], ["conv"]),
        helper.make_node("MatMul", ["conv", "conv"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "slice",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 16, 4, 3])],
        [helper.make_tensor_value_info("scores", FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert count_macs(model) == 5 * 4 * 4 * 3 + 5 * 4 * 4 * 4
