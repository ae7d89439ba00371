"""Repair steps on layers that students of kdedge do not have: other ranks of weights and of inputs, other biases."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_networks import images, quantizer_of, sqnr

from kdedge.export.quantize.calibrate import tensor_runner
from kdedge.export.quantize.candidates import Candidate
from kdedge.export.quantize.equalise import equalise
from kdedge.export.quantize.proof import integer_proof
from kdedge.export.quantize.quantizer import _preprocess
from kdedge.export.quantize.rounding import round_with_compensation

PER_CHANNEL = Candidate(calibration_images=128)
node = helper.make_node


def core(middle: list[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """A convolution with 8 channels of 8 x 8, the nodes from ``relu`` to ``last``, and logits of what they return."""
    rng = np.random.default_rng(0)
    values = {"conv.w": rng.normal(0, 0.3, (8, 3, 3, 3)), "conv.b": rng.normal(0, 0.1, 8), **constants}
    nodes = [
        node("Conv", ["image", "conv.w", "conv.b"], ["conv"], name="conv", pads=[1] * 4),
        node("Relu", ["conv"], ["relu"], name="relu"),
        *middle,
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.asarray(value, None if name.endswith("shape") else np.float32), name)
            for name, value in values.items()
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def weights(*shape: int) -> Any:
    return np.random.default_rng(1).normal(0, 0.3, shape)


def head(inputs: int) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Return the classifier of the tensor ``last``."""
    nodes = [node("Flatten", ["last"], ["flat"], name="flat"), node("Gemm", ["flat", "fc.w"], ["logits"], name="fc")]
    return nodes, {"fc.w": weights(inputs, 4)}


def on_sequences(kind: str, weight: Any, outputs: int, shape: tuple[int, ...] = (8, 64)) -> onnx.ModelProto:
    """A layer on maps as sequences, ``[N, 8, 64]``."""
    options = {"pads": [1, 1]} if kind == "Conv" else {}
    nodes, values = head(outputs)
    middle = [
        node("Reshape", ["relu", "sequence.shape"], ["sequence"], name="sequence"),
        node(kind, ["sequence", "layer.w"], ["layer"], name="layer", **options),
        node("Relu", ["layer"], ["last"], name="relu2"),
        *nodes,
    ]
    return core(middle, **{"sequence.shape": [0, *shape], "layer.w": weight, **values})


@pytest.mark.parametrize(
    ("model", "rounded"),
    [
        (on_sequences("MatMul", weights(64, 5), 40), True),
        (on_sequences("MatMul", weights(16, 5), 160, (4, 8, 16)), True),
        (on_sequences("MatMul", weights(8, 5), 320, (64, 8)), True),
        (on_sequences("MatMul", weights(1, 64, 5), 40), False),
        (on_sequences("MatMul", weights(8, 64, 5), 40, (8, 1, 64)), False),
        (on_sequences("Conv", weights(6, 8, 3), 384), False),
    ],
    ids=["tokens", "maps", "as long as channels", "one matrix", "a matrix per channel", "Conv1d"],
)
def test_layers_on_sequences_are_rounded_or_left_alone(model: onnx.ModelProto, rounded: bool) -> None:
    before = quantizer_of(model)
    assert before.layers == (("conv", "layer", "fc") if rounded else ("conv", "fc"))
    after = round_with_compensation(before, PER_CHANNEL)
    assert sqnr(after, PER_CHANNEL, model) > sqnr(before, PER_CHANNEL, model)
    pixels = images(16)
    expected, equal = (tensor_runner(graph, ["logits"])(pixels)[0] for graph in (model, equalise(model)))
    np.testing.assert_allclose(equal, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("bias", "beta"), [(0.5, 1.0), ([0.5], 1.0), ([[0.5, 1, 2, 3]], 1.0), ([0.5, 1, 2, 3], 0.5)],
    ids=["scalar", "one value", "two axes", "beta"],
)  # fmt: skip
def test_a_gemm_may_have_any_bias(bias: Any, beta: float) -> None:
    pool, last = node("GlobalAveragePool", ["relu"], ["last"], name="pool"), head(8)[0][0]
    gemm = node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", beta=beta)
    model = core([pool, last, gemm], **{"fc.w": weights(8, 4), "fc.b": bias})
    assert sqnr(quantizer_of(_preprocess(model)), PER_CHANNEL, model) > 30


def test_a_gemm_with_a_factor_runs_as_integers() -> None:
    pool, last = node("GlobalAveragePool", ["relu"], ["last"], name="pool"), head(8)[0][0]
    gemm = node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", alpha=0.5)
    model = core([pool, last, gemm], **{"fc.w": weights(8, 4), "fc.b": [0.5, 1, 2, 3]})
    quantizer = quantizer_of(_preprocess(model))
    assert not integer_proof(quantizer.build(PER_CHANNEL))["float_gemms"]
    assert sqnr(quantizer, PER_CHANNEL, model) > 30


def test_a_mean_over_other_axes_than_height_and_width_stays() -> None:
    middle = [
        node("Reshape", ["relu", "sequence.shape"], ["sequence"], name="sequence"),
        node("ReduceMean", ["sequence", "axes.shape"], ["mean"], name="mean"),
        node("Add", ["sequence", "mean"], ["last"], name="add"),
        *head(512)[0],
    ]
    values = {"sequence.shape": [0, 8, 64], "axes.shape": [-1, -2], "fc.w": weights(512, 4)}
    assert sqnr(quantizer_of(_preprocess(core(middle, **values))), PER_CHANNEL, core(middle, **values)) > 20
