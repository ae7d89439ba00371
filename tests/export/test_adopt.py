"""Classifiers that kdedge did not train, rewritten for pixels and any batch."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from other_models import CLASSES, FLOAT, UINT8, adopted, colour_net

from kdedge.benchmarks.emulate.emulator import CPUS, emulate
from kdedge.benchmarks.input_adapter import PREPROCESSING, open_classifier
from kdedge.benchmarks.session import import_onnxruntime, open_model, open_session, run_model, session_options
from kdedge.errors import InputError
from kdedge.export.adopt import _load, adopt_model
from kdedge.export.bundle.answers import answers
from kdedge.export.quantize.candidates import Candidate, score
from kdedge.export.quantize.float_reasons import float_operators
from kdedge.export.quantize.proof import integer_proof
from kdedge.export.quantize.quantizer import OP_TYPES, Quantizer, _without_range


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


@pytest.mark.parametrize("activation", ["Relu", "HardSwish"])
def test_a_softmax_at_the_end_is_left_out(tmp_path, activation):
    """So that a bundle returns the probabilities of the model, not their softmax."""
    path = colour_net(tmp_path / "net.onnx", activation=activation, last="Softmax")
    adopted(path, tmp_path / "student.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    expected = open_classifier(path).logits(pixels, PREPROCESSING["torchvision"], 3)
    logits = run_model(open_model(tmp_path / "student.onnx"), pixels)
    found = answers(["pixels"] * 32, logits, list(CLASSES), 1)
    assert [answer["probability"] for answer in found] == pytest.approx(expected.max(1), abs=1e-5)


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


def test_a_model_whose_opset_cannot_be_converted_is_refused(tmp_path):
    values = {name: helper.make_tensor_value_info(name, FLOAT, [1, 3, 8, 8]) for name in ("image", "map")}
    weights = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    conv = helper.make_node("Conv", ["image", "w"], ["map"])
    graph = helper.make_graph(
        [conv], "old", [values["image"]], [values["map"]], [weights]
    )  # its inputs lack the weights
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3), tmp_path / "model.onnx"
    )
    with pytest.raises(InputError, match=r"cannot read .*model\.onnx: .* is undefined"):
        _load(tmp_path / "model.onnx")


def test_the_long_name_of_the_operators_of_onnx_is_known(tmp_path):
    path = colour_net(tmp_path / "model.onnx", activation="Relu")
    model = onnx.load(path)
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    onnx.save(model, path)
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    Quantizer.from_model(adopted(path, tmp_path / "student.onnx"), pixels).build(Candidate(calibration_images=2))


def test_a_constant_list_of_numbers_is_a_shape(tmp_path):
    """As in functions of onnxscript."""
    path = colour_net(tmp_path / "net.onnx", batch=1, activation="Relu")
    model = onnx.load(path)
    model.graph.initializer.remove(next(item for item in model.graph.initializer if item.name == "shape"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[1, 6]))
    onnx.save(model, path)
    adopted(path, tmp_path / "student.onnx")


def test_operators_of_onnxruntime_are_refused(tmp_path):
    options = session_options(1)
    options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    open_session(colour_net(tmp_path / "model.onnx", activation="Relu"), options=options)
    with pytest.raises(InputError, match=r"fused\.onnx has the operator FusedConv of com\.microsoft; expected"):
        adopted(tmp_path / "fused.onnx", tmp_path / "student.onnx")


def test_weights_behind_a_link_are_to_be_copied(tmp_path):
    """As in the cache of Hugging Face."""
    path = colour_net(tmp_path / "net.onnx", save_as_external_data=True, size_threshold=100, location="net.data")
    (tmp_path / "net.data").rename(tmp_path / "blob")
    (tmp_path / "net.data").symlink_to("blob")
    with pytest.raises(InputError, match=r"net\.onnx has its weights in net\.data, which is a link"):
        adopted(path, tmp_path / "student.onnx")


@pytest.mark.parametrize("declared", [["N", 3], None])
def test_a_model_that_squeezes_the_batch_is_refused(tmp_path, declared):
    weight = np.zeros((3, 3, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        helper.make_node("Squeeze", ["means"], ["scores"]),  # all axes of length 1
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", FLOAT, declared)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "n.onnx")
    with pytest.raises(InputError, match=r"n\.onnx returns logits of another shape for one image than for several"):
        adopted(tmp_path / "n.onnx", tmp_path / "student.onnx")


def test_float16_is_refused(tmp_path):
    model = onnx.load(colour_net(tmp_path / "model.onnx"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    next(node for node in model.graph.node if "image" in node.input).input[0] = "wide"
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["wide"], to=FLOAT))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="takes float16; expected float or uint8"):
        adopted(tmp_path / "model.onnx", tmp_path / "student.onnx")


def test_float16_weights_between_float32_inputs_and_logits_are_refused(tmp_path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(colour_net(tmp_path / "model.onnx")), keep_io_types=True)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx has weights in float16; expected float32"):
        adopted(tmp_path / "model.onnx", tmp_path / "student.onnx")


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


@pytest.mark.parametrize("bounds", [(0.1, 0.3), (-0.3, -0.1), (-0.2, 0.2)])
def test_clips_keep_their_bounds(tmp_path, bounds):
    path = tmp_path / "net.onnx"
    model = onnx.load(colour_net(path, activation="Relu"))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Clip"
    node.input.extend(("low", "high"))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.float32(bound), name) for bound, name in zip(bounds, ("low", "high"), strict=True)
    )
    onnx.save(model, path)
    model = adopted(path, tmp_path / "student.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    quantized = Quantizer.from_model(model, pixels).build(Candidate(calibration_images=32))
    (tmp_path / "int8.onnx").write_bytes(quantized)
    fp32, int8 = (run_model(open_model(tmp_path / name), pixels) for name in ("student.onnx", "int8.onnx"))
    assert score(fp32, int8, np.zeros(32, np.int64)).sqnr_db > 25


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
