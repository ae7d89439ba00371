"""Reads and changes ONNX graphs: checks, the input adapter, multiply-accumulate counts.

The FP32 graph begins ``pixels uint8 NHWC → Cast → Mul(1/255) → Transpose → core``, or for signals
``signal float NLC → Sub → Mul → Unsqueeze → Transpose → core``. `cut_input_adapter` returns the core with a float NCHW
input. `add_input_adapter` puts ``pixels → DequantizeLinear(1/255, 0) → Transpose`` in front of a quantized core, or the
operators of the signal.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdedge.benchmarks.session import CPU, import_onnxruntime, session_options
from kdedge.errors import InputError
from kdedge.export.lookup import arrays, attributes, dimensions, producers, readers, rename
from kdedge.files import parse_json
from kdedge.inputs import InputSpec, image_input_of
from kdedge.manifest import versions

__all__ = [
    "ADOPTED",
    "CORE_INPUT",
    "IR_VERSION",
    "add_input_adapter",
    "count_macs",
    "cut_input_adapter",
    "drop_unused",
    "keep_float",
    "lowest_runtime",
    "read_model",
    "read_spec",
]

CORE_INPUT = "image"
IR_VERSION = 8  # old runtimes refuse newer ones, which only types of tensors that kdedge does not use need
ADOPTED = "kdedge.adopted"  # key of the metadata of models that kdedge did not train: the name of their file
_Front = tuple[list[onnx.NodeProto], dict[str, npt.NDArray[Any]]]
_SIGNAL_FRONT = ["Sub", "Mul", "Unsqueeze", "Transpose"]
# Versions of onnxruntime with the highest opset and IR version that each loads.
_RUNTIMES = (("1.14", 18, 8), ("1.16", 19, 9), ("1.17", 20, 9), ("1.18", 21, 10))
_HINT = "give a student.onnx that `kdedge export` wrote"


def read_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file with an input and the metadata of kdedge.

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
    if read_spec(model) is None or "kdedge.classes" not in {item.key for item in model.metadata_props}:
        raise InputError(
            f"{path} was not exported by kdedge: inputs {[value.name for value in model.graph.input]}; expected one "
            "input pixels uint8 [N,S,S,3] or [N,S,S,1] or signal float [N,L,C] and the metadata kdedge.classes",
            _HINT,
        )
    return model


def read_spec(model: onnx.ModelProto) -> InputSpec | None:
    """Return the input of a model; None if it is not one of kdedge."""
    if len(model.graph.input) != 1:
        return None
    value = model.graph.input[0]
    kind, shape = (value.name, value.type.tensor_type.elem_type), tuple(dimensions(value)[1:])
    if kind == ("pixels", TensorProto.UINT8):
        return image_input_of(shape)
    metadata = {item.key: item.value for item in model.metadata_props}
    try:
        spec = InputSpec.from_json(parse_json(metadata["kdedge.preprocessing"]))
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError):
        return None
    return spec if kind == (spec.name, TensorProto.FLOAT) and shape == spec.shape else None


def cut_input_adapter(model: onnx.ModelProto, spec: InputSpec) -> onnx.ModelProto:
    """Return a copy without the operators that normalise, taking normalised ``image`` float32 ``[N, C, H, W]``.

    Raises:
        InputError: The graph does not begin with exactly these operators.
    """
    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    front, tensor = _pixel_front(graph) if spec.kind == "image" else _signal_front(graph)
    for node in front:
        graph.node.remove(node)
    rename(graph, tensor, CORE_INPUT)
    del graph.input[:], graph.value_info[:], core.metadata_props[:]
    graph.input.append(helper.make_tensor_value_info(CORE_INPUT, TensorProto.FLOAT, ["batch", *spec.core_shape]))
    drop_unused(graph)
    return core


def _signal_front(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], str]:
    """Return ``Sub → Mul → Unsqueeze → Transpose`` and its output."""
    tensor = "signal"
    front: list[onnx.NodeProto] = []
    while len(users := readers(graph, tensor)) == 1 and len(front) < len(_SIGNAL_FRONT):
        front.append(users[0])
        tensor = users[0].output[0]
    kinds = [node.op_type for node in front]
    if kinds != _SIGNAL_FRONT or attributes(front[-1])["perm"] != [0, 3, 1, 2]:
        raise InputError(f"the graph begins with {kinds}; expected {_SIGNAL_FRONT}, to (0,3,1,2)", _HINT)
    return front, tensor


def _pixel_front(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], str]:
    """Return ``Cast``, ``Mul(1/255)`` and ``Transpose``, in any order, and their output."""
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
    return front, tensor


def add_input_adapter(core: onnx.ModelProto, spec: InputSpec) -> None:
    """Put the operators that normalise in front of a core, in place.

    Raises:
        ValueError: The input is quantized to uint8 pixels with another scale than 1/255 or zero point than 0.
    """
    graph = core.graph
    front, constants = (_dequantize_pixels if spec.kind == "image" else _normalise_signal)(graph, spec)
    nodes = [*front, *graph.node]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in constants.items()])
    element = helper.np_dtype_to_tensor_dtype(spec.dtype)
    graph.input.append(helper.make_tensor_value_info(spec.name, element, ["batch", *spec.shape]))
    drop_unused(graph)


def _normalise_signal(graph: onnx.GraphProto, spec: InputSpec) -> _Front:
    """Return ``Sub → Mul → Unsqueeze → Transpose``; onnxruntime moves the Transpose into the first convolution."""
    nodes = [
        helper.make_node("Sub", ["signal", "signal_mean"], ["signal_centred"], name="signal_sub"),
        helper.make_node("Mul", ["signal_centred", "signal_scale"], ["signal_scaled"], name="signal_mul"),
        helper.make_node("Unsqueeze", ["signal_scaled", "signal_axes"], ["signal_nhwc"], name="signal_unsqueeze"),
        helper.make_node("Transpose", ["signal_nhwc"], [CORE_INPUT], name="signal_nchw", perm=[0, 3, 1, 2]),
    ]
    numbers = {"signal_mean": spec.mean, "signal_scale": spec.scale}
    constants = {name: np.array(values, np.float32) for name, values in numbers.items()}
    return nodes, {**constants, "signal_axes": np.array([1])}


def _dequantize_pixels(graph: onnx.GraphProto, spec: InputSpec) -> _Front:
    """Return ``DequantizeLinear(1/255, 0) → Transpose``, and cut the core's own Quantize.

    If the core's input is quantized to uint8, its Quantize and Dequantize are removed: the pixels are that quantized
    input (scale 1/255 and zero point 0 represent them exactly), and onnxruntime moves the Transpose into the first
    convolution. A first layer in float or with int8 input keeps its operators.

    Raises:
        ValueError: The input is quantized to uint8 with another scale than 1/255 or zero point than 0.
    """
    constants = arrays(graph)
    for node in [node for node in readers(graph, CORE_INPUT) if node.op_type == "QuantizeLinear"]:
        scale, zero = (constants[name] for name in node.input[1:])
        if zero.dtype != np.uint8:
            continue
        if scale != np.float32(1) / np.float32(255) or zero != 0:
            raise ValueError(f"input scale {scale}, zero point {zero} {zero.dtype}; expected 1/255 and 0 uint8")
        for reader in readers(graph, node.output[0]):
            rename(graph, reader.output[0], CORE_INPUT)
            graph.node.remove(reader)
        graph.node.remove(node)
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["pixels", "pixels_scale", "pixels_zero"], ["pixels_nhwc"], name="pixels_float"
        ),
        helper.make_node("Transpose", ["pixels_nhwc"], [CORE_INPUT], name="pixels_nchw", perm=[0, 3, 1, 2]),
    ]
    return nodes, {"pixels_scale": np.array(1 / 255, np.float32), "pixels_zero": np.array(0, np.uint8)}


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
    drop_unused(graph)


def count_macs(model: onnx.ModelProto) -> int:
    """Count the multiply-accumulates of one input in all Conv, Gemm and MatMul nodes, without biases.

    The shapes are those of a run: shape inference does not find those behind a Slice with computed bounds.
    """
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    shapes: dict[str, tuple[int, ...]] = {item.name: tuple(item.dims) for item in model.graph.initializer}
    names = list({name: None for node in layers for name in (node.output[0], node.input[1]) if name not in shapes})
    del observed.graph.output[:]
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    source = model.graph.input[0]
    one = np.zeros((1, *dimensions(source)[1:]), helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type))
    session = import_onnxruntime().InferenceSession(observed.SerializeToString(), session_options(1), providers=[CPU])
    results = session.run(names, {source.name: one})
    shapes |= {name: result.shape for name, result in zip(names, results, strict=True)}
    total = 0
    for node in layers:
        weights = shapes[node.input[1]]
        if node.op_type == "Conv":
            inputs = math.prod(weights[1:])
        else:
            inputs = weights[-1 if attributes(node).get("transB") else -2]
        total += math.prod(shapes[node.output[0]]) * inputs
    return total


def lowest_runtime(models: Iterable[Path]) -> dict[str, Any]:
    """Return the oldest ``onnxruntime`` version that loads these models, with their ``opset`` and ``ir_version``.

    If the opset or IR version is too new to know it, the version is that of this machine.

    Raises:
        InputError: As `read_model`.
    """
    loaded = [read_model(path) for path in models]
    opset = max(item.version for model in loaded for item in model.opset_import)
    ir_version = max(model.ir_version for model in loaded)
    fit = (name for name, most_opset, most_ir in _RUNTIMES if opset <= most_opset and ir_version <= most_ir)
    return {"onnxruntime": next(fit, versions()["onnxruntime"]), "opset": opset, "ir_version": ir_version}


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
