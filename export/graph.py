"""Reads and changes ONNX graphs: checks, the input adapter, multiply-accumulate counts.

The FP32 graph begins ``pixels uint8 NHWC → Cast → Mul(1/255) → Transpose → core``. `cut_input_adapter` returns the core
with a float NCHW input, `add_input_adapter` puts ``pixels → DequantizeLinear(1/255, 0) → Transpose`` in front of a
quantized core.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.errors import InputError
from kdedge.export.lookup import arrays, attributes, producers, readers

__all__ = [
    "CORE_INPUT",
    "add_input_adapter",
    "count_macs",
    "cut_input_adapter",
    "keep_float",
    "lowest_runtime",
    "read_model",
]

CORE_INPUT = "image"
# Versions of onnxruntime with the highest opset and IR version that each loads.
_RUNTIMES = (("1.14", 18, 8), ("1.16", 19, 9), ("1.17", 20, 9), ("1.18", 21, 10))
_HINT = "give a student.onnx that `kdedge export` wrote"


def read_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file with a ``pixels`` input of uint8 ``[N, S, S, 3]`` and the metadata of kdedge.

    Raises:
        InputError: The file is missing, truncated, not valid ONNX, or not a model that kdedge exported.
    """
    try:
        data = path.read_bytes()
        onnx.checker.check_model(data)  # raises ValueError for bytes that it cannot parse
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


def cut_input_adapter(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without ``Cast → Mul(1/255) → Transpose``, taking ``image`` float32 ``[N, 3, S, S]`` in 0..1.

    Raises:
        InputError: The graph does not begin with exactly these three operators.
    """
    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    constants = arrays(graph)
    tensor, scale, perm, front = "pixels", 1.0, [], []
    for _ in range(3):
        users = readers(graph, tensor)
        if len(users) != 1:
            break
        node = users[0]
        if node.op_type == "Mul":
            factors = [constants[name] for name in node.input if name in constants]
            scale *= float(factors[0]) if factors and factors[0].size == 1 else math.nan
        elif node.op_type == "Transpose":
            perm = attributes(node)["perm"]
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


def add_input_adapter(core: onnx.ModelProto) -> None:
    """Put ``pixels → DequantizeLinear(1/255, 0) → Transpose`` in front of a core, in place.

    If the core's input is quantized to uint8, its Quantize and Dequantize are removed: the pixels are that quantized
    input (scale 1/255 and zero point 0 represent them exactly), and onnxruntime moves the Transpose into the first
    convolution. A first layer in float or with int8 input keeps its operators.

    Raises:
        ValueError: The input is quantized to uint8 with another scale than 1/255 or zero point than 0.
    """
    graph = core.graph
    constants = arrays(graph)
    for node in [node for node in readers(graph, CORE_INPUT) if node.op_type == "QuantizeLinear"]:
        scale, zero = (constants[name] for name in node.input[1:])
        if zero.dtype != np.uint8:
            continue
        if scale != np.float32(1) / np.float32(255) or zero != 0:
            raise ValueError(f"input scale {scale}, zero point {zero} {zero.dtype}; expected 1/255 and 0 uint8")
        for reader in readers(graph, node.output[0]):
            _rename(graph, reader.output[0], CORE_INPUT)
            graph.node.remove(reader)
        graph.node.remove(node)
    size = _shape(graph.input[0])[2]
    front = [
        helper.make_node(
            "DequantizeLinear", ["pixels", "pixels_scale", "pixels_zero"], ["pixels_nhwc"], name="pixels_float"
        ),
        helper.make_node("Transpose", ["pixels_nhwc"], [CORE_INPUT], name="pixels_nchw", perm=[0, 3, 1, 2]),
    ]
    nodes = [*front, *graph.node]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "pixels_scale"),
            numpy_helper.from_array(np.array(0, np.uint8), "pixels_zero"),
        ]
    )
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3]))
    _drop_unused(graph)


def keep_float(model: onnx.ModelProto) -> None:
    """Make layers with float weights run in float, in place.

    onnxruntime 1.32 (WeightBiasQuantization) silently quantizes the float weights of any Conv or Gemm behind a
    per-tensor DequantizeLinear to 8 bits per tensor when a session starts. A sensitive layer left in float would then
    be less accurate than before, and overflow on x86 CPUs without VNNI. onnxruntime ignores a DequantizeLinear with a
    scale per channel, so these layers get one with equal scales.
    """
    graph = model.graph
    constants, sources = arrays(graph), producers(graph)
    for layer in [node for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in constants]:
        reader, axis = layer, 1
        source = sources.get(layer.input[0])
        if source is not None and source.op_type == "Transpose":
            axis = attributes(source)["perm"][1]
            reader, source = source, sources.get(source.input[0])
        if source is None or source.op_type != "DequantizeLinear" or constants[source.input[1]].ndim:
            continue
        shape, options = constants[layer.input[1]].shape, attributes(layer)
        inputs = shape[1] if layer.op_type == "Conv" or options.get("transB") else shape[0]
        channels = inputs * options.get("group", 1)
        names = [f"{layer.name}_input_{part}" for part in ("scale", "zero_point")]
        for name, old in zip(names, source.input[1:], strict=True):
            graph.initializer.append(numpy_helper.from_array(np.repeat(constants[old], channels), name))
        dequantize = helper.make_node(
            "DequantizeLinear",
            [source.input[0], *names],
            [f"{layer.name}_input"],
            name=f"{layer.name}_input",
            axis=axis,
        )
        graph.node.insert(list(graph.node).index(reader), dequantize)
        reader.input[0] = dequantize.output[0]
    used = {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] not in used]:
        graph.node.remove(node)
    _drop_unused(graph)


def count_macs(model: onnx.ModelProto) -> int:
    """Count the multiply-accumulates of one image in all Conv, Gemm and MatMul nodes, without biases."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {value.name: _shape(value) for value in (*inferred.graph.value_info, *inferred.graph.output)}
    weights = {name: array.size for name, array in arrays(inferred.graph).items()}
    total = 0
    for node in inferred.graph.node:
        if node.op_type == "Conv":
            total += weights[node.input[1]] * math.prod(shapes[node.output[0]][2:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += weights.get(node.input[1], 0)
    return total


def lowest_runtime(models: Iterable[Path]) -> dict[str, Any]:
    """Return the oldest ``onnxruntime`` version that loads these models, with their ``opset`` and ``ir_version``.

    Raises:
        InputError: As `read_model`.
    """
    loaded = [read_model(path) for path in models]
    opset = max(item.version for model in loaded for item in model.opset_import)
    ir_version = max(model.ir_version for model in loaded)
    fit = (name for name, most_opset, most_ir in _RUNTIMES if opset <= most_opset and ir_version <= most_ir)
    return {"onnxruntime": next(fit), "opset": opset, "ir_version": ir_version}


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Return the dimensions of a tensor; 0 for symbolic ones."""
    return [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Replace ``old`` by ``new`` in the inputs of all nodes."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
