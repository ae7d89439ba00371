"""Reading and changing the ONNX graphs: checks, the pixel front, multiply-accumulate counts.

The FP32 graph begins ``pixels uint8 NHWC → Cast → Mul(1/255) → Transpose → core``. `cut_pixel_front` gives the core
with a float NCHW input, `add_pixel_front` puts ``pixels → DequantizeLinear(1/255, 0) → Transpose`` in front of a
quantized core. Needs the package onnx.
"""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import InputError

__all__ = ["CORE_INPUT", "add_pixel_front", "count_macs", "cut_pixel_front", "read_model"]

CORE_INPUT = "image"
_HINT = "give a student.onnx that `kdedge export` wrote"


def read_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file with a ``pixels`` input of uint8 ``[N, S, S, 3]`` and the metadata of kdedge.

    Raises:
        InputError: The file is missing, truncated, not valid ONNX, or not a model that kdedge exported.
    """
    try:
        data = path.read_bytes()
        onnx.checker.check_model(data)  # parses the bytes itself and says ValueError if it cannot
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise InputError(f"cannot read the model {path}: {error.strerror}", _HINT) from error
    except (ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is truncated or not an ONNX model: {reason}", _HINT) from error
    found = [(value.name, _shape(value), value.type.tensor_type.elem_type) for value in model.graph.input]
    named = {item.key for item in model.metadata_props}
    ok = len(found) == 1 and found[0][0] == "pixels" and found[0][2] == TensorProto.UINT8
    if not ok or len(found[0][1]) != 4 or found[0][1][3] != 3 or "kdedge.classes" not in named:
        raise InputError(
            f"{path} was not exported by kdedge: inputs {[name for name, _, _ in found]}; "
            "expected one input pixels uint8 [N,S,S,3] and the metadata kdedge.classes",
            _HINT,
        )
    return model


def cut_pixel_front(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without ``Cast → Mul(1/255) → Transpose``, taking ``image`` float32 ``[N, 3, S, S]`` in 0..1.

    Raises:
        InputError: The graph does not begin with exactly these three operators.
    """
    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    constants = {item.name: item for item in graph.initializer}
    tensor, scale, perm, front = "pixels", 1.0, [], []
    for _ in range(3):
        users = [node for node in graph.node if tensor in node.input]
        if len(users) != 1:
            break
        node = users[0]
        if node.op_type == "Mul":
            factors = [numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
            scale *= float(factors[0]) if factors and factors[0].size == 1 else math.nan
        elif node.op_type == "Transpose":
            perm = list(helper.get_node_attr_value(node, "perm"))
        elif node.op_type != "Cast":
            break
        front.append(node)
        tensor = node.output[0]
    kinds = sorted(node.op_type for node in front)
    if kinds != ["Cast", "Mul", "Transpose"] or perm != [0, 3, 1, 2] or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        raise InputError(
            f"the graph begins with {kinds}, scale {scale:g}; expected Cast, Mul(1/255), Transpose(0,3,1,2)", _HINT
        )
    size = _shape(graph.input[0])[1]
    for node in front:
        graph.node.remove(node)
    _rename(graph, tensor, CORE_INPUT)
    del graph.input[:], graph.value_info[:], core.metadata_props[:]
    graph.input.append(helper.make_tensor_value_info(CORE_INPUT, TensorProto.FLOAT, ["batch", 3, size, size]))
    _drop_unused(graph)
    return core


def add_pixel_front(core: onnx.ModelProto) -> None:
    """Let a quantized core take uint8 NHWC pixels: its input QuantizeLinear becomes DequantizeLinear → Transpose.

    The pixels are then themselves the quantized input (scale 1/255, zero point 0 represent them exactly), and
    onnxruntime moves the Transpose into the first convolution, which leaves nothing in front of it.

    Raises:
        ValueError: The input is not quantized with scale 1/255 and zero point 0.
    """
    graph = core.graph
    constants = {item.name: item for item in graph.initializer}
    quantize = [node for node in graph.node if node.op_type == "QuantizeLinear" and CORE_INPUT in node.input]
    if len(quantize) != 1:
        raise ValueError(f"{len(quantize)} QuantizeLinear nodes read {CORE_INPUT}; expected 1")
    scale_name, zero_name = quantize[0].input[1], quantize[0].input[2]
    scale, zero = numpy_helper.to_array(constants[scale_name]), numpy_helper.to_array(constants[zero_name])
    if scale != np.float32(1) / np.float32(255) or zero != 0 or zero.dtype != np.uint8:
        raise ValueError(f"input scale {scale}, zero point {zero} {zero.dtype}; expected 1/255 and 0 uint8")
    readers = [node for node in graph.node if quantize[0].output[0] in node.input]
    size = _shape(graph.input[0])[2]
    graph.node.remove(quantize[0])
    for node in readers:
        _rename(graph, node.output[0], CORE_INPUT)
        graph.node.remove(node)
    front = [
        helper.make_node("DequantizeLinear", ["pixels", scale_name, zero_name], ["pixels_nhwc"], name="pixels_scale"),
        helper.make_node("Transpose", ["pixels_nhwc"], [CORE_INPUT], name="pixels_nchw", perm=[0, 3, 1, 2]),
    ]
    nodes = [*front, *graph.node]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3]))
    _drop_unused(graph)


def count_macs(model: onnx.ModelProto) -> int:
    """Count the multiply-accumulates of one image in all Conv, Gemm and MatMul nodes (biases not counted).

    A convolution costs its output positions times its weights, Gemm and MatMul cost their constant weights.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {value.name: _shape(value) for value in (*inferred.graph.value_info, *inferred.graph.output)}
    weights = {item.name: math.prod(item.dims) for item in inferred.graph.initializer}
    total = 0
    for node in inferred.graph.node:
        if node.op_type == "Conv":
            total += weights[node.input[1]] * math.prod(shapes[node.output[0]][2:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += weights.get(node.input[1], 0)
    return total


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Return the dimensions of a tensor; 0 for symbolic ones."""
    return [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every node that reads ``old`` read ``new``."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
