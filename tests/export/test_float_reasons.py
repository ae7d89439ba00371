"""The reasons why operators of a quantized model stay in float."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from kdedge.export.quantize.float_reasons import float_causes, float_operators
from kdedge.export.quantize.quantizer import OP_TYPES


def test_every_kind_of_reason():
    """Two quantized maps, ``a`` and ``b``, and everything that may follow them."""
    nodes = [
        helper.make_node("DequantizeLinear", ["qa", "scale"], ["a"]),
        helper.make_node("DequantizeLinear", ["qa", "scale"], ["a2"]),  # onnxruntime makes one for each reader
        helper.make_node("DequantizeLinear", ["qb", "scale"], ["b"]),
        helper.make_node("Sigmoid", ["a"], ["sigmoid"], name="sigmoid"),
        helper.make_node("Mul", ["a2", "sigmoid"], ["silu"], name="silu"),
        helper.make_node("HardSigmoid", ["b"], ["gate"], name="gate"),
        helper.make_node("Mul", ["a", "gate"], ["scaled"], name="scaled"),
        helper.make_node("Mul", ["a", "b"], ["product"], name="product"),
        helper.make_node("Mul", ["a", "scale"], ["half"], name="half"),
        helper.make_node("LayerNormalization", ["a", "scale"], ["norm"], name="norm"),
        helper.make_node("Conv", ["norm", "scale"], ["after"], name="after"),
        helper.make_node("MaxPool", ["a"], ["pool"], name="pool"),
        helper.make_node("Expand", ["pool"], ["expanded"], name="expand"),
        helper.make_node("Shape", ["a"], ["sides"]),
        helper.make_node("Cast", ["sides"], ["number"], name="number"),
        helper.make_node("Add", ["number", "scale"], ["padding"], name="padding"),
        helper.make_node("MatMul", ["a", "b"], ["attention"], name="attention"),
        helper.make_node("Conv", ["b", "scale"], ["alone"], name="alone"),
        helper.make_node("QuantizeLinear", ["alone", "scale"], ["qc"]),
        helper.make_node("Conv", ["a", "scale"], ["left"], name="left"),
        helper.make_node("Relu", ["b"], ["logits"], name="last"),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    graph = helper.make_graph(nodes, "graph", [], outputs, [scale])
    floats = [node for node in nodes if node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Shape")]
    rows = float_operators({"float_nodes": float_causes(graph, floats)}, OP_TYPES, ["left"])
    assert {row["name"]: row["cause"] for row in rows} == {
        "sigmoid": "activation", "silu": "activation", "gate": "activation", "scaled": "gate", "product": "gate",
        "half": "operator", "norm": "normalisation", "after": "float_input", "pool": "float_output",
        "expand": "operator", "number": "shape", "padding": "shape",
        "attention": "two_inputs", "alone": "kernel", "left": "repair", "last": "logits",
    }  # fmt: skip
    reasons = {row["name"]: row["reason"] for row in rows}
    assert reasons["after"] == "its input is the float result of LayerNormalization"
    assert reasons["pool"] == "its output is the float input of Expand"
    assert reasons["expand"] == "kdedge does not quantize Expand"
