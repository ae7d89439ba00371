"""Fan-out, depthwise convolutions and ReLU6: every repair step is right on them, or leaves them unchanged."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized import as_written_and_as_run, trainable_graph_sqnr_db
from small_networks import PER_TENSOR, images, quantizer_of, sqnr

from kdedge.export.quantize.biases import correct_biases
from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate, score
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.layers import Weights
from kdedge.export.quantize.proof import integer_proof, why_not_integer
from kdedge.export.quantize.qat import fine_tune
from kdedge.export.quantize.quantizer import Quantizer
from kdedge.export.quantize.rounding import round_with_compensation

PER_CHANNEL = Candidate(calibration_images=128)
LAYERS = ("stem", "expand", "depthwise", "project", "head", "fc")


def core(activation: str, *, spread: float = 0.0) -> onnx.ModelProto:
    """A stem, an inverted residual block around it, a padded max-pool, a last convolution and a matrix product.

    ``spread``: the channels between expansion, depthwise convolution and projection are scaled by factors over so many
    decades, which changes nothing in float if the activation is a ReLU.
    """
    rng = np.random.default_rng(3)
    shapes = {
        "stem": (16, 3, 3, 3), "expand": (32, 16, 1, 1), "depthwise": (32, 1, 3, 3), "project": (16, 32, 1, 1),
        "head": (24, 16, 3, 3), "fc": (4, 24),
    }  # fmt: skip
    weights = {
        name: rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }
    biases = {name: rng.normal(0, 0.1, shape[0]).astype(np.float32) for name, shape in shapes.items()}
    first, second = (10 ** rng.uniform(-spread / 2, spread / 2, (2, 32, 1, 1, 1))).astype(np.float32)
    weights["expand"] *= first
    biases["expand"] *= first.ravel()
    weights["depthwise"] *= second / first
    biases["depthwise"] *= second.ravel()
    weights["project"] /= second.reshape(1, 32, 1, 1)
    limits = ["low", "high"] if activation == "Clip" else []

    def conv(name: str, source: str, *, active: bool = True, **attributes: Any) -> list[onnx.NodeProto]:
        target = f"{name}.raw" if active else f"{name}.out"
        nodes = [helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [target], name=name, **attributes)]
        if active:
            nodes.append(helper.make_node(activation, [target, *limits], [f"{name}.out"], name=f"{name}.act"))
        return nodes

    pads = [1, 1, 1, 1]
    nodes = [
        *conv("stem", "image", pads=pads),
        *conv("expand", "stem.out"),
        *conv("depthwise", "expand.out", pads=pads, group=32),
        *conv("project", "depthwise.out", active=False),
        helper.make_node("Add", ["stem.out", "project.out"], ["sum"], name="add"),
        helper.make_node("MaxPool", ["sum"], ["half"], name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=pads),
        *conv("head", "half", pads=pads),
        helper.make_node("AveragePool", ["head.out"], ["mean"], name="mean", kernel_shape=[4, 4]),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", transB=1),
    ]
    constants = [numpy_helper.from_array(value, f"{name}.w") for name, value in weights.items()]
    constants += [numpy_helper.from_array(value, f"{name}.b") for name, value in biases.items()]
    if limits:
        # At 1 instead of 6 it clips a good part of the values of this untrained network.
        constants += [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 1))]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("candidate", [PER_TENSOR, PER_CHANNEL], ids=lambda item: item.format)
def test_everything_is_integer(activation: str, candidate: Candidate) -> None:
    proof = integer_proof(quantizer_of(core(activation)).build(candidate))
    assert why_not_integer(proof) == ""
    assert (proof["integer_convs"], proof["integer_gemms"]) == (5, 1)
    assert proof["ops_by_type"]["QLinearAdd"] == 1
    assert not {"Clip", "Relu", "QuantizeLinear"} & proof["ops_by_type"].keys()


def test_equalisation_goes_through_a_depthwise_convolution_and_stops_at_fan_out_and_add() -> None:
    model = core("Relu", spread=3)
    equal = equalise(model)
    pixels = images(16)
    before, after = (tensor_runner(graph, ["logits"])(pixels)[0] for graph in (model, equal))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    old = {layer.name: Weights(model).weight(layer) for layer in Weights(model).layers}
    new = {layer.name: Weights(equal).weight(layer) for layer in Weights(equal).layers}
    largest = {name: np.abs(value) for name, value in new.items()}
    expand, depthwise = largest["expand"].max((1, 2, 3)), largest["depthwise"].max((1, 2, 3))
    np.testing.assert_allclose(expand, depthwise, rtol=0.02)
    np.testing.assert_allclose(depthwise, largest["project"].max((0, 2, 3)), rtol=0.02)
    np.testing.assert_array_equal(new["stem"], old["stem"])  # read by the block and by its shortcut
    assert not np.array_equal(new["head"], old["head"])  # the last pair, with fc
    assert sqnr(quantizer_of(equal), PER_TENSOR, model) > sqnr(quantizer_of(model), PER_TENSOR, model) + 10


def test_equalisation_leaves_a_clipped_activation_alone() -> None:
    model = core("Clip")
    weights, changed = Weights(model), Weights(equalise(model))
    for old, new in zip(weights.layers, changed.layers, strict=True):
        np.testing.assert_array_equal(weights.weight(old), changed.weight(new))


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_bias_correction(activation: str) -> None:
    model = core(activation)
    before = quantizer_of(model)
    after = correct_biases(before, PER_TENSOR)

    def errors(quantizer: Quantizer) -> dict[str, float]:
        """The largest mean error of a channel, by convolution, on the images that it was measured on."""
        graph = onnx.load_model_from_string(quantizer.build(PER_TENSOR))
        named = {node.name: node for node in graph.graph.node}
        plain = {node.name: node for node in model.graph.node}
        found = {}
        for name in LAYERS[:-1]:
            got = tensor_runner(graph, [named[name].output[0]])(before.images)[0]
            wanted = tensor_runner(model, [plain[name].output[0]])(before.images)[0]
            found[name] = float(np.abs((got - wanted).mean((0, 2, 3))).max())
        return found

    old, new = errors(before), errors(after)
    for name in LAYERS[:-1]:
        assert new[name] < max(old[name] / 5, 1e-3), name


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_compensated_rounding(activation: str) -> None:
    model = core(activation)
    before = quantizer_of(model)
    after = round_with_compensation(before, PER_TENSOR)
    assert sqnr(after, PER_TENSOR, model) > sqnr(before, PER_TENSOR, model) + 1


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("float_layers", [(), ("depthwise",), ("stem", "project")], ids="+".join)
def test_the_trainable_graph_computes_what_onnxruntime_does(activation: str, float_layers: tuple[str, ...]) -> None:
    for candidate in (PER_TENSOR, PER_CHANNEL):
        quantizer = quantizer_of(core(activation))
        assert trainable_graph_sqnr_db(quantizer, candidate, images(32, seed=2), float_layers) > 40


def test_fine_tuning() -> None:
    model = core("Clip")
    before = quantizer_of(model)
    assert sqnr(fine_tune(before, PER_TENSOR, images(512, seed=1)), PER_TENSOR, model) > (
        sqnr(before, PER_TENSOR, model) + 1
    )


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_every_layer_can_go_back_to_float_alone(activation: str) -> None:
    quantizer = quantizer_of(core(activation))
    pixels = images(32, seed=2)
    for layer in LAYERS:
        model = quantizer.build(PER_CHANNEL, exclude=[layer])
        proof = integer_proof(model)
        assert [label.split(" (")[0] for label in (*proof["float_convs"], *proof["float_gemms"])] == [layer]
        assert why_not_integer(proof, [layer]) == ""
        as_written, as_run = as_written_and_as_run(model, pixels)
        assert score(as_written, as_run, as_written.argmax(1)).sqnr_db > 40
