"""Checks that onnxruntime runs a quantized model with integer kernels, node by node.

onnxruntime fuses DequantizeLinear → Conv → QuantizeLinear into one integer kernel, or silently leaves it in float.
`integer_proof` saves the optimised graph of a session on this host and counts its kernels.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from kdedge.benchmarks.kernels import FLOAT_CONVS, FLOAT_GEMMS, INTEGER_CONVS, INTEGER_GEMMS
from kdedge.benchmarks.session import CPU, import_onnxruntime, session_options
from kdedge.export.lookup import attributes, producers, readers
from kdedge.export.quantize.float_reasons import float_causes
from kdedge.files import scratch_dir

__all__ = ["integer_proof", "optimise", "why_not_integer"]

_SIGNAL_FRONT = {"Sub", "Mul", "Unsqueeze", "Reshape", "Transpose", "QuantizeLinear"}
_QGEMM_OUTPUT_ZERO_POINT = 8  # without this input QGemm returns float


def integer_proof(model: bytes) -> dict[str, Any]:
    """Optimise a model with onnxruntime on this host and count its integer and float kernels.

    Args:
        model: Bytes of a quantized ONNX model.

    Returns:
        ``integer_convs`` and ``integer_gemms`` (counts), ``float_convs``, ``float_gemms`` and ``float_ops`` (names
        with types; ``float_ops`` are all other operators on float tensors), ``float_nodes`` (all three, from
        `kdedge.export.quantize.float_reasons.float_causes`), ``before_first_conv`` (types of the operators between the
        input and the first convolution, except those that normalise a signal), ``ops_by_type`` (counts).
    """
    levels = import_onnxruntime().GraphOptimizationLevel
    proof = _read_optimised(optimise(model, levels.ORT_ENABLE_ALL))
    names = ("float_convs", "float_gemms", "float_ops", "float_nodes")
    if any(proof[key] for key in names):
        # The last level only changes memory layouts, but renames float nodes on the way.
        named = _read_optimised(optimise(model, levels.ORT_ENABLE_EXTENDED))
        proof |= {key: named[key] for key in names}
    return proof


def why_not_integer(proof: Mapping[str, Any], allowed: Collection[str] = (), *, any_operator: bool = False) -> str:
    """Describe the operators of a model that run unexpectedly in float, except the final logits.

    Args:
        proof: From `integer_proof`.
        allowed: Names of layers that are in float on purpose. Operators next to them (a ReLU, a pool) may then be in
            float, too.
        any_operator: Whether any operator may be in float, as in a model that kdedge did not train.

    Returns:
        A sentence, or an empty string if all run as integers.
    """
    if any_operator:
        integers = proof["integer_convs"] or proof["integer_gemms"]
        return "" if integers else "onnxruntime runs no layer of the INT8 model as integers"
    kinds = [("float_convs", "convolutions"), ("float_gemms", "matrix products")]
    for key, what in kinds if allowed else [*kinds, ("float_ops", "operators")]:
        if left := [label for label in proof[key] if label.split(" (")[0] not in allowed]:
            return f"onnxruntime runs these {what} of the INT8 model in float: {', '.join(left)}"
    if proof["integer_convs"] and proof["before_first_conv"] and not allowed:
        return (
            f"the first integer convolution is preceded by {', '.join(proof['before_first_conv'])}; "
            "expected the quantized input to enter it directly"
        )
    return ""


def optimise(model: bytes, level: Any) -> onnx.GraphProto:
    """Return the graph of a session on this host at an optimisation level."""
    options = session_options(1)
    options.graph_optimization_level = level
    with scratch_dir() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        import_onnxruntime().InferenceSession(model, options, providers=[CPU])
        return onnx.load(options.optimized_model_filepath).graph


def _read_optimised(graph: onnx.GraphProto) -> dict[str, Any]:
    """Read the proof from an optimised graph, whose nodes are in topological order."""
    convs, gemms = [], []
    float_convs: list[str] = []
    float_gemms: list[str] = []
    float_ops: list[str] = []
    float_nodes: list[onnx.NodeProto] = []
    floats = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    front = _signal_front(graph) if graph.input[0].name == "signal" else []
    for node in graph.node:
        if node in front:
            continue
        label = f"{node.name or node.output[0]} ({node.op_type})"
        kind = node.op_type
        gives_float, left = False, None
        if kind in INTEGER_CONVS:
            convs.append(node)
        elif kind in INTEGER_GEMMS:
            gemms.append(node)
            gives_float = kind in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul") or (
                kind == "QGemm" and not any(node.input[_QGEMM_OUTPUT_ZERO_POINT:])
            )
        elif kind in FLOAT_CONVS:
            left = float_convs
        elif kind in FLOAT_GEMMS:
            left = float_gemms
        elif kind == "DequantizeLinear":
            gives_float = True
        elif kind == "Cast":
            left = float_ops if attributes(node)["to"] == TensorProto.FLOAT else None
        elif kind not in ("QuantizeLinear", "Shape") and not kind.startswith("QLinear") and floats & {*node.input}:
            left = float_ops
        if left is not None:
            left.append(label)
            float_nodes.append(node)
        if gives_float or left is not None:
            floats.update(node.output)
    return {
        "integer_convs": len(convs),
        "float_convs": float_convs,
        "integer_gemms": len(gemms),
        "float_gemms": float_gemms,
        "float_ops": float_ops,
        "float_nodes": float_causes(graph, float_nodes),
        "before_first_conv": _path_to_input(graph, convs[0].input[0], len(front)) if convs else [],
        "ops_by_type": dict(sorted(Counter(node.op_type for node in graph.node).items())),
    }


def _signal_front(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the operators that normalise and quantize the float input; none if it is not quantized behind them.

    onnxruntime quantizes before it moves axes.
    """
    tensor, front = graph.input[0].name, []
    while len(users := readers(graph, tensor)) == 1 and users[0].op_type in _SIGNAL_FRONT:
        front.append(users[0])
        tensor = users[0].output[0]
    return front if any(node.op_type == "QuantizeLinear" for node in front) else []


def _path_to_input(graph: onnx.GraphProto, tensor: str, front: int) -> list[str]:
    """Return the types of the operators that lead from the graph input to ``tensor``, without the first ``front``."""
    sources = producers(graph)
    found: list[str] = []
    while tensor in sources:
        node = sources[tensor]
        found.insert(0, node.op_type)
        tensor = node.input[0]
    return found[front:]
