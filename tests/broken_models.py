"""Models in kdedge's format that load and then fail, or return something that is no answer."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = ("reshape", "memory", "one row", "nan")


def write_broken(path: Path, kind: str, size: int = 16, classes: int = 4) -> Path:
    """Write a model that fails in a Reshape or for want of memory, or returns ``[1, C]`` or NaN."""
    node = helper.make_node
    weights = np.full((3 * size * size, classes), np.nan if kind == "nan" else 0, np.float32)
    constants = [numpy_helper.from_array(weights, "w")]
    nodes = [
        node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        node("Flatten", ["float"], ["flat"]),
        node("MatMul", ["flat", "w"], ["product"]),
    ]
    if kind == "reshape":
        constants.append(numpy_helper.from_array(np.array([7, classes]), "shape"))
        nodes.append(node("Reshape", ["product", "shape"], ["logits"]))
    elif kind == "memory":
        constants.append(numpy_helper.from_array(np.array([10**12]), "shape"))
        nodes.append(node("ConstantOfShape", ["shape"], ["large"]))
        nodes.append(node("ReduceSum", ["large"], ["zero"], keepdims=0))
        nodes.append(node("Add", ["product", "zero"], ["logits"]))
    elif kind == "one row":
        nodes.append(node("ReduceMax", ["product"], ["logits"], axes=[0], keepdims=1))
    else:
        nodes.append(node("Identity", ["product"], ["logits"]))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    graph = helper.make_graph(nodes, "broken", [pixels], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
